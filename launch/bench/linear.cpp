// periplus bench linear: linear attention and the delta rule, one core against its peaks and eight paced ranks.
#include <string>

#include "launch/bench/figure_run.h"
#include "launch/bench/linear_figures.h"
#include "launch/bench/suites.h"
#include "launch/ranks.h"

namespace periplus::launch::bench {

int bench_linear(Arguments arguments) {
  OptionTable table("bench linear", "linear attention against the machine's peaks, and its strategies over paced links",
                    "periplus bench linear [--only C13,C14] [--samples 7]");
  std::string only;
  Sampling sampling;
  add_sampling_options(table, only, sampling);
  table.parse(arguments);
  if (answered(table)) return kOk;
  std::vector<Figure> figures = linear_kernel_figures();
  for (Figure& figure : linear_strategy_figures()) figures.push_back(std::move(figure));
  return run_figures(table, std::move(figures), only, sampling);
}

}  // namespace periplus::launch::bench
