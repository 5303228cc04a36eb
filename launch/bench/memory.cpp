// periplus bench memory: activation memory of a rank by the number of ranks.
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "launch/bench/suites.h"
#include "launch/bench/training_sample.h"
#include "launch/ranks.h"
#include "launch/train_options.h"
#include "runtime/comm/thread_transport.h"
#include "runtime/error.h"

namespace periplus::launch::bench {

int bench_memory(Arguments arguments) {
  OptionTable table("bench memory", "activation memory of a rank by the number of ranks, counted by the runtime's allocator",
                    "periplus bench memory --config FILE");
  train::Config config;
  config.run.steps = 1;
  RankOptions ranks;
  std::vector<std::int64_t> counts{1, 2, 4, 8};
  add_train_options(table, config, ranks);
  table.add(
      {.flag = "rank-counts", .target = &counts, .value = "LIST", .help = "Rank counts to measure, as threads.", .least = 1, .most = 64});
  table.parse(arguments);
  if (answered(table)) return kOk;
  refuse_options_of_whole_runs(table);
  if (table.typed("ranks")) throw InvalidArgument("--ranks is one count; give the list with --rank-counts 1,2,4,8");
  if (table.typed("transport")) throw InvalidArgument("--transport: ranks are threads here; leave it out");
  if (config.data.paths.empty()) config.data.paths = {"/usr/include"};
  train::check(config);
  nlohmann::json rows = nlohmann::json::array();
  double first = 0;
  say(table, fmt::format("{:>6} {:>16} {:>16} {:>10}", "ranks", "peak bytes", "activations", "share"));
  for (const std::int64_t count : counts) {
    TrainingSample sample;
    comm::run_thread_ranks(static_cast<int>(count), [&](comm::Communicator communicator) {
      const TrainingSample mine = train_briefly(config, communicator);
      if (communicator.rank() == 0) sample = mine;
    });
    const auto activations = static_cast<double>(sample.peak_bytes - sample.state_bytes);
    if (first == 0) first = activations;
    say(table, fmt::format("{:>6} {:>16} {:>16.0f} {:>10.3f}", count, sample.peak_bytes, activations, activations / first));
    rows.push_back(
        {{"ranks", count}, {"peak_bytes", sample.peak_bytes}, {"activation_bytes", activations}, {"share_of_first", activations / first}});
  }
  print_result(table, {{"id", "memory"}, {"context", config.data.context}, {"rows", rows}});
  return kOk;
}

}  // namespace periplus::launch::bench
