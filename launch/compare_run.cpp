#include "launch/compare_run.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "launch/bench/statistics.h"
#include "launch/bytes_text.h"
#include "launch/commands.h"
#include "launch/ranks.h"
#include "launch/train_options.h"
#include "parallel/simulate/iteration.h"
#include "parallel/train/checkpoint/checkpoint.h"
#include "parallel/train/data/corpus.h"
#include "parallel/train/data/packing.h"
#include "parallel/train/metrics.h"
#include "parallel/train/planner_costs.h"
#include "runtime/error.h"

namespace periplus::launch {
namespace {

train::Manifest manifest_of(const std::string& folder) {
  const auto checkpoint = train::newest_checkpoint(folder);
  if (!checkpoint) throw InvalidArgument(fmt::format("--compare {}: there is no checkpoint in it, which holds the configuration", folder));
  return train::read_manifest(*checkpoint);
}

/// The configuration that a run's checkpoint holds.
train::Config config_of(const train::Manifest& manifest) {
  train::Config config;
  RankOptions ranks;
  OptionTable table("train", "", "");
  add_train_options(table, config, ranks);
  std::vector<std::string> arguments;
  for (const auto& [key, value] : manifest.config) arguments.insert(arguments.end(), {"--set", fmt::format("{}={}", key, value)});
  table.parse(arguments);
  return config;
}

simulate::Shape shape_of(const train::Config& config) {
  const std::string pattern = config.model.pattern_of_layers();
  if (pattern.find_first_not_of("SL") != std::string::npos)
    throw InvalidArgument(fmt::format("--compare: layers '{}'; only S and L are simulated", pattern));
  return train::simulated_shape(config.model, dtype_from_string(config.run.dtype));
}

struct Step {
  std::int64_t number = 0;
  int ranks = 1;
  double measured = 0;
  double measured_bytes = 0;  ///< The most that a rank has held up to this step.
  double simulated = 0;
};

std::vector<Step> measured_steps(const std::string& folder) {
  std::vector<Step> steps;
  for (const train::StepMetrics& step : train::read_metrics(folder)) {
    if (step.step_seconds > 0) steps.push_back({step.step, step.ranks, step.step_seconds, static_cast<double>(step.peak_memory_bytes)});
  }
  if (steps.size() < 2)
    throw InvalidArgument(fmt::format("--compare: {} has {} steps; two are needed, as the first does not count", folder, steps.size()));
  steps.erase(steps.begin());
  return steps;
}

std::vector<std::int64_t> lengths_of(std::span<const train::Piece> row) {
  std::vector<std::int64_t> lengths;
  for (const train::Piece& piece : row) lengths.push_back(piece.length);
  return lengths;
}

}  // namespace

int compare_with_run(const OptionTable& table, const std::string& folder, const simulate::Machine& machine) {
  std::vector<Step> steps = measured_steps(folder);
  const train::Manifest manifest = manifest_of(folder);
  const train::Config config = config_of(manifest);
  if (config.parallel.planner != "none" || config.data.rows_per_step != 1)
    throw InvalidArgument(
        fmt::format("--compare {}: steps of {} rows, parallel.planner {}; only steps of one row over all ranks "
                    "are simulated; predicted_seconds of metrics.jsonl is what the planner predicted",
                    folder, config.data.rows_per_step, config.parallel.planner));
  const simulate::Shape shape = shape_of(config);
  const train::Corpus corpus = train::open_corpora(config).training;
  if (corpus.digest() != manifest.corpus_digest)
    throw InvalidArgument(fmt::format("--compare {}: its files ({}) have changed since, and with them the rows of its steps", folder,
                                      manifest.config.at("data.paths")));
  const train::Packing packing(config.data.packing, corpus.lengths(), config.data.context);
  train::RowOrder order(packing, config.run.seed);
  std::vector<double> errors;
  double measured_bytes = 0, simulated_bytes = 0;
  say(table, fmt::format("{:>6} {:>12} {:>12} {:>8}", "step", "measured s", "simulated s", "ratio"));
  for (Step& step : steps) {
    const std::vector<std::int64_t> documents = lengths_of(packing.row(order.row_of_step(step.number)));
    const simulate::Iteration iteration =
        simulate::simulate_iteration(shape, machine, train::simulated_training(config, step.ranks, documents));
    step.simulated = iteration.seconds;
    measured_bytes = std::max(measured_bytes, step.measured_bytes), simulated_bytes = std::max(simulated_bytes, iteration.memory.total());
    errors.push_back(std::abs(step.simulated / step.measured - 1));
    say(table,
        fmt::format("{:>6} {:>12.5f} {:>12.5f} {:>8.3f}", step.number, step.measured, step.simulated, step.simulated / step.measured));
  }
  const double error = bench::median(errors);
  say(table, fmt::format("median error of {} steps: {:.1f} %", steps.size(), 100 * error));
  simulated_bytes *= static_cast<double>(size_of(dtype_from_string(config.run.dtype))) / shape.element_bytes;  // twice for f64
  say(table, fmt::format("memory of a rank: {} measured, {} simulated, ratio {:.3f}", bytes_text(measured_bytes),
                         bytes_text(simulated_bytes), simulated_bytes / measured_bytes));
  nlohmann::json json{{"median_error", error},
                      {"measured_bytes", measured_bytes},
                      {"simulated_bytes", simulated_bytes},
                      {"steps", nlohmann::json::array()}};
  for (const Step& step : steps)
    json["steps"].push_back({{"step", step.number}, {"measured", step.measured}, {"simulated", step.simulated}});
  print_result(table, json);
  return kOk;
}

}  // namespace periplus::launch
