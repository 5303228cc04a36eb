// periplus bench kernels: attention on the CPU against the peaks of this machine, against oneDNN and against itself.
#include <string>

#include "launch/bench/figure_run.h"
#include "launch/bench/suites.h"
#include "launch/ranks.h"

namespace periplus::launch::bench {

int bench_kernels(Arguments arguments) {
  OptionTable table("bench kernels",
                    "attention kernels against the machine's peaks; exit code 1 if a figure misses its goal or is too noisy to tell",
                    "periplus bench kernels [--only C1,C4] [--samples 7]");
  std::string only;
  Sampling sampling;
  add_sampling_options(table, only, sampling);
  table.parse(arguments);
  if (answered(table)) return kOk;
  return run_figures(table, kernel_figures(), only, sampling);
}

}  // namespace periplus::launch::bench
