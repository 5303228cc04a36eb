// periplus bench: figures that are ratios of two things timed in one run.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <thread>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <omp.h>

#include "launch/commands.h"
#include "launch/ranks.h"
#include "launch/suggest.h"
#include "launch/train_options.h"
#include "parallel/train/trainer.h"
#include "runtime/comm/thread_transport.h"
#include "runtime/error.h"

namespace periplus::launch {
namespace {

namespace fs = std::filesystem;

struct Sample {
  std::vector<double> tokens_per_second;  ///< of every step but the first
  double first_loss = 0;
  std::int64_t peak_bytes = 0, state_bytes = 0;
};

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values.empty() ? 0 : values[values.size() / 2];
}

/// A few training steps in a folder that is removed afterwards. Collective.
Sample measure(const train::Config& base, const comm::Communicator& communicator) {
  train::Config config = base;
  const std::string mine =
      (fs::temp_directory_path() / fmt::format("periplus-bench-{}", std::hash<std::thread::id>{}(std::this_thread::get_id()))).string();
  config.run.directory = communicator.all_gather_bytes(mine, Stream()).front();
  Sample sample;
  train::TrainOptions options;
  options.checkpoints = options.measure_peak = false;
  options.on_step = [&](const train::StepMetrics& metrics) {
    if (metrics.step == 1) sample.first_loss = metrics.loss;
    if (metrics.step > 1) sample.tokens_per_second.push_back(metrics.tokens_per_second);
    sample.peak_bytes = metrics.peak_memory_bytes;
  };
  const train::TrainResult result = train::train(config, options, communicator);
  sample.state_bytes = result.state_bytes;
  if (communicator.rank() == 0) fs::remove_all(config.run.directory);
  return sample;
}

/// Rank 0 works alone while the others sleep: a spinning wait would take the cores it measures.
template <class Work>
void alone(const comm::Communicator& communicator, Work&& work) {
  const char token = 0;
  char arrived = 0;
  if (communicator.rank() == 0) {
    work();
    std::vector<comm::Send> sends;
    for (int peer = 1; peer < communicator.size(); ++peer) sends.push_back({peer, &token, 1});
    communicator.exchange(sends, {}, {"wake up"}, Stream()).wait();
    return;
  }
  const comm::Receive receive{0, &arrived, 1};
  comm::Pending wake = communicator.exchange({}, {&receive, 1}, {"wake up"}, Stream());
  while (!wake.done()) std::this_thread::sleep_for(std::chrono::milliseconds(2));
}

struct Sides {
  std::vector<double> ranks, threads;
  double rank_loss = 0, thread_loss = 0;
};

/// Alternates P ranks with their share of the cores and one rank with all of them.
Sides alternate(const OptionTable& table, const train::Config& config, int samples, int cores, const comm::Communicator& communicator) {
  Sides sides;
  for (int i = 0; i < samples; ++i) {
    omp_set_num_threads(std::max(1, cores / communicator.size()));
    const Sample many = measure(config, communicator);
    alone(communicator, [&] {
      omp_set_num_threads(cores);
      const Sample one = measure(config, comm::Communicator());
      sides.ranks.push_back(median(many.tokens_per_second));
      sides.threads.push_back(median(one.tokens_per_second));
      sides.rank_loss = many.first_loss, sides.thread_loss = one.first_loss;
      say(table, fmt::format("sample {} of {}: {:.0f} and {:.0f} tokens/s, ratio {:.3f}", i + 1, samples, sides.ranks.back(),
                             sides.threads.back(), sides.ranks.back() / sides.threads.back()));
    });
  }
  return sides;
}

int bench_train(Arguments arguments) {
  OptionTable table("bench train", "training speed: ranks against one process with as many threads",
                    "periplus bench train [--ranks 2] --config FILE");
  train::Config config;
  config.run.steps = 3;
  RankOptions ranks;
  ranks.ranks = 2;
  int samples = 7;
  constexpr double kGoal = 0.9;
  add_train_options(table, config, ranks);
  table.add({.flag = "samples", .target = &samples, .value = "N", .help = "Pairs of measurements; the median counts.", .least = 1});
  table.parse(arguments);
  if (answered(table)) return kOk;
  if (config.data.paths.empty()) config.data.paths = {"/usr/include"};
  if (config.run.steps < 2)
    throw InvalidArgument(fmt::format("train: --steps {}; at least 2 are needed, the first is not counted", config.run.steps));
  train::check(config);
  const RankSource source = find_ranks(ranks);
  const int cores = omp_get_num_procs();
  if (source.mpi && cores < source.ranks) {
    throw InvalidArgument(fmt::format("train: this process may use {} of the cores that {} ranks need; start it with mpirun --bind-to none",
                                      cores, source.ranks));
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
  if (table.given("ranks")) throw InvalidArgument("memory: --ranks is one count; give the list with --rank-counts 1,2,4,8");
  if (config.data.paths.empty()) config.data.paths = {"/usr/include"};
  train::check(config);
  nlohmann::json rows = nlohmann::json::array();
  double first = 0;
  say(table, fmt::format("{:>6} {:>16} {:>16} {:>10}", "ranks", "peak bytes", "activations", "share"));
  for (const std::int64_t count : counts) {
    Sample sample;
    comm::run_thread_ranks(static_cast<int>(count), [&](comm::Communicator communicator) {
      const Sample mine = measure(config, communicator);
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

}  // namespace

int bench_command(Arguments arguments) {
  if (arguments.empty()) throw InvalidArgument("which suite? use: periplus bench train|memory [options]");
  const std::string& suite = arguments.front();
  if (suite == "train") return bench_train(arguments.subspan(1));
  if (suite == "memory") return bench_memory(arguments.subspan(1));
  if (suite != "--help" && suite != "-h") {
    throw InvalidArgument(
        fmt::format("there is no suite '{}'{}; there are train and memory", suite, did_you_mean(suite, {"train", "memory"})));
  }
  std::fputs("Usage: periplus bench train|memory [options]; periplus bench SUITE --help lists the options.\n", stdout);
  return kOk;
}

}  // namespace periplus::launch
