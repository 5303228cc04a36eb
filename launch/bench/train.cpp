// periplus bench train: ranks against one process with as many threads.
#include <algorithm>
#include <cmath>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <omp.h>

#include "launch/bench/alone.h"
#include "launch/bench/statistics.h"
#include "launch/bench/suites.h"
#include "launch/bench/training_sample.h"
#include "launch/ranks.h"
#include "launch/train_options.h"
#include "runtime/error.h"

namespace periplus::launch::bench {
namespace {

struct Sides {
  std::vector<double> ranks, threads;
  double rank_loss = 0, thread_loss = 0;
};

/// Alternates P ranks with their share of the cores and one rank with all of them.
Sides alternate(const OptionTable& table, const train::Config& config, int samples, int cores, const comm::Communicator& communicator) {
  Sides sides;
  for (int i = 0; i < samples; ++i) {
    omp_set_num_threads(std::max(1, cores / communicator.size()));
    const TrainingSample many = train_briefly(config, communicator);
    alone(communicator, [&] {
      omp_set_num_threads(cores);
      const TrainingSample one = train_briefly(config, comm::Communicator());
      sides.ranks.push_back(median(many.tokens_per_second));
      sides.threads.push_back(median(one.tokens_per_second));
      sides.rank_loss = many.first_loss, sides.thread_loss = one.first_loss;
      say(table, fmt::format("sample {} of {}: {:.0f} and {:.0f} tokens/s, ratio {:.3f}", i + 1, samples, sides.ranks.back(),
                             sides.threads.back(), sides.ranks.back() / sides.threads.back()));
    });
  }
  return sides;
}

}  // namespace

int bench_train(Arguments arguments) {
  OptionTable table("bench train", "training speed: ranks against one process with as many threads",
                    "periplus bench train [--ranks 2] --config FILE");
  train::Config config;
  config.run.steps = 3;
  RankOptions ranks{.alone = 2};
  int samples = 7;
  constexpr double kGoal = 0.9;
  add_train_options(table, config, ranks);
  table.add({.flag = "samples", .target = &samples, .value = "N", .help = "Pairs of measurements; the median counts.", .least = 1});
  table.parse(arguments);
  if (answered(table)) return kOk;
  refuse_options_of_whole_runs(table);
  if (config.data.paths.empty()) config.data.paths = {"/usr/include"};
  if (config.run.steps < 2)
    throw InvalidArgument(fmt::format("--steps {}; at least 2 are needed, the first is not counted", config.run.steps));
  train::check(config);
  const RankSource source = find_ranks(ranks);
  const int cores = omp_get_num_procs();
  if (source.processes() && cores < source.ranks) {
    throw InvalidArgument(
        fmt::format("this process may use {} of the cores that {} ranks need; start it with mpirun --bind-to none", cores, source.ranks));
  }
  return run_ranks(source, ranks, [&](const comm::Communicator& communicator) {
    const Sides sides = alternate(table, config, samples, cores, communicator);
    if (communicator.rank() != 0) return kOk;
    std::vector<double> ratios;
    for (std::size_t i = 0; i < sides.ranks.size(); ++i) ratios.push_back(sides.ranks[i] / sides.threads[i]);
    const double ratio = median(ratios);
    const bool same_loss = std::abs(sides.rank_loss - sides.thread_loss) <= 0.01 * std::abs(sides.thread_loss);
    say(table, fmt::format("{} ranks ({}) / one process with {} threads: {:.0f} / {:.0f} tokens/s, median ratio {:.3f}, goal {}; first "
                           "losses {:.4f} and {:.4f}",
                           communicator.size(), communicator.transport_name(), cores, median(sides.ranks), median(sides.threads), ratio,
                           kGoal, sides.rank_loss, sides.thread_loss));
    print_result(
        table, {{"id", "train.ranks"},
                {"case", fmt::format("{} ranks, {}, context {}", communicator.size(), communicator.transport_name(), config.data.context)},
                {"value", median(sides.ranks)},
                {"yardstick", median(sides.threads)},
                {"ratio", ratio},
                {"goal", kGoal},
                {"pass", same_loss && ratio >= kGoal}});
    return same_loss && ratio >= kGoal ? kOk : kFailedCheck;
  });
}

}  // namespace periplus::launch::bench
