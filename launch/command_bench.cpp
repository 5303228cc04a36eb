// periplus bench: figures that are ratios of two things timed in one run. Picks the suite.
#include <algorithm>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "launch/bench/suites.h"
#include "launch/commands.h"
#include "launch/ranks.h"
#include "launch/suggest.h"
#include "runtime/error.h"

namespace periplus::launch {
namespace {

struct Suite {
  std::string name;
  std::string purpose;
  int (*run)(Arguments);
  bool one_process = true;  ///< Refuses to run as several.
};

const std::vector<Suite>& suites() {
  static const std::vector<Suite> table = {
      {"train", "training speed of ranks against one process with as many threads", bench::bench_train, false},
      {"attention", "distributed attention against one process with as many threads", bench::bench_attention, false},
      {"memory", "activation memory by the number of ranks", bench::bench_memory},
      {"kernels", "attention kernels against the peaks of this machine and against oneDNN", bench::bench_kernels},
      {"linear", "linear attention against the peaks of this machine, and its strategies over paced links", bench::bench_linear},
      {"overlap", "how much of the communication strategies hide, with paced links and sleeping kernels", bench::bench_overlap},
      {"strategies", "all strategies side by side on one problem, with paced links and sleeping kernels", bench::bench_strategies},
      {"planner", "plans of batches of unequal lengths: time, distance from the bound, gain", bench::bench_planner},
      {"gpu", "attention on a CUDA device against cuBLAS, in blocks, and beside other work", bench::bench_gpu},
  };
  return table;
}

}  // namespace

int bench_command(Arguments arguments) {
  std::vector<std::string> names;
  for (const Suite& suite : suites()) names.push_back(suite.name);
  const std::string usage = fmt::format("periplus bench {} [options]", fmt::join(names, "|"));
  if (arguments.empty()) throw InvalidArgument("which suite? use: " + usage);
  const std::string& wanted = arguments.front();
  if (wanted == "--help" || wanted == "-h") {
    std::string page = "Usage: " + usage + "\n\n";
    for (const Suite& suite : suites()) page += fmt::format("  {:<10} {}\n", suite.name, suite.purpose);
    std::fputs((page + "\nperiplus bench SUITE --help lists the options.\n").c_str(), stdout);
    return kOk;
  }
  const auto suite = std::ranges::find(suites(), wanted, &Suite::name);
  if (suite == suites().end()) {
    throw InvalidArgument(
        fmt::format("there is no suite '{}'{}; there are {}", wanted, did_you_mean(wanted, names), fmt::join(names, ", ")));
  }
  if (suite->one_process) require_one_process();
  return suite->run(arguments.subspan(1));
}

}  // namespace periplus::launch
