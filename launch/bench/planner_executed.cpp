#include "launch/bench/planner_executed.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <random>

#include <fmt/format.h>

#include "launch/bench/figure_lines.h"
#include "launch/bench/planned_run.h"
#include "launch/descriptions.h"
#include "parallel/planner/planner.h"
#include "parallel/train/data/corpus.h"
#include "runtime/error.h"

namespace periplus::launch::bench {
namespace {

using Lengths = std::vector<std::int64_t>;

constexpr int kRanks = 8, kBatches = 3, kSequences = 96;
/// The longest document needs all ranks but the room of one, as FlexSP's limits do.
constexpr std::int64_t kTokensPerRank = 16384, kLimit = 7 * kTokensPerRank;
constexpr double kTokenSeconds = 30e-6;  // of a rank, all layers, both passes: steps of seconds

/// GPT-7B on FlexSP's cluster by ratios: attention to matrices at the longest document as at 192K there; and the exchange of heads
/// of 16 ranks, which crosses nodes.
PacedModel paced_model() {
  const planner::Model gpt = load_model("gpt-7b");
  constexpr double kPublishedLimit = 192 * 1024;
  PacedModel model;
  model.matrix_seconds_per_token = kTokenSeconds / (3 * model.layers);
  const double pair = gpt.seconds_per_pair / gpt.seconds_per_token * kTokenSeconds * kPublishedLimit / kLimit;
  model.attention_flops_per_second = 7.0 * model.layers * model.heads * model.head_size / pair;
  const planner::CostModel cost(gpt, load_machine("a100x64"));
  const auto kind = std::ranges::find_if(cost.kinds(), [](const planner::Kind& k) { return k.degree == 16; });
  const double exchange = (kind->token * kind->degree - gpt.seconds_per_token) / gpt.seconds_per_token;
  const double bytes = 2.0 * model.layers * 4 * model.heads * model.head_size * 2;  // q, k, v and results, bf16, both passes
  model.links.inside = {.bytes_per_second = bytes / (exchange * kTokenSeconds), .latency_seconds = 20e-6, .sharing = comm::Sharing::port};
  return model;
}

std::vector<Lengths> batches_of(const std::string& data) {
  const std::vector<std::string> paths = {data};
  Lengths all = train::Corpus(paths).lengths();
  std::erase_if(all, [](std::int64_t length) { return length > kLimit; });
  if (all.empty()) throw InvalidArgument(fmt::format("{} has no document of at most {} bytes", data, kLimit));
  std::mt19937_64 random(1);
  std::vector<Lengths> batches(kBatches);
  for (Lengths& batch : batches) {
    for (int k = 0; k < kSequences; ++k) batch.push_back(all[random() % all.size()]);
  }
  return batches;
}

/// Of all batches together.
struct Side {
  std::vector<PacedBatch> steps;
  double simulated = 0, executed = 0, predicted = 0;
};

Side flexible_side(const PacedModel& model, planner::Planner& planner, const std::vector<Lengths>& batches) {
  Side side;
  for (const Lengths& lengths : batches) {
    const planner::BatchPlan plan = planner.plan(lengths);
    side.predicted += plan.seconds;
    side.steps.emplace_back(model, plan, planner.cost(), lengths);
    side.simulated += side.steps.back().simulate();
  }
  return side;
}

/// The kind that holds the limit and takes least in the simulator, not only in the planner's cost model.
Side best_static_side(const PacedModel& model, planner::Planner& planner, const std::vector<Lengths>& batches, std::string& name) {
  Side best;
  best.simulated = std::numeric_limits<double>::infinity();
  for (int k = 0; k < static_cast<int>(planner.cost().kinds().size()); ++k) {
    const planner::Kind& kind = planner.cost().kinds()[static_cast<std::size_t>(k)];
    if (kind.capacity < kLimit) continue;
    Side side;
    for (const Lengths& lengths : batches) {
      const planner::BatchPlan plan = planner.plan_of_kind(lengths, k);
      side.predicted += plan.seconds;
      side.steps.emplace_back(model, plan, planner.cost(), lengths);
      side.simulated += side.steps.back().simulate();
    }
    if (side.simulated >= best.simulated) continue;
    best = std::move(side);
    name = fmt::format("{} x {}", kind.degree, planner::to_string(kind.method));
  }
  return best;
}

Line line_of(std::string name, std::string unit) {
  Line line;
  line.id = std::string("executed"), line.name = std::move(name), line.unit = std::move(unit);
  return line;
}

Line against_simulator(const std::string& name, const Side& side) {
  Line line = line_of(fmt::format("{}: executed / simulated", name), "s");
  line.value = side.executed, line.yardstick = side.simulated, line.ratio = side.executed / side.simulated;
  line.goal = Goal{.due = 1.05, .stretch = {}, .at_most = true};
  line.more = {{"predicted", side.predicted}};
  if (line.ratio < 0.95) line.wrong = fmt::format("executed in {:.3f} of the simulated time", line.ratio);
  return line;
}

}  // namespace

std::vector<Line> planner_executed(const std::string& data) {
  const PacedModel model = paced_model();
  const std::vector<Lengths> batches = batches_of(data);
  planner::Planner planner(planner::CostModel(model.for_planner(), model.machine(kRanks, kTokensPerRank)));
  std::string name;
  Side flexible = flexible_side(model, planner, batches), fixed = best_static_side(model, planner, batches, name);
  double tokens = 0;
  for (std::size_t b = 0; b < batches.size(); ++b) {
    show_progress(fmt::format("executed: batch {} of {}", b + 1, batches.size()));
    flexible.executed += flexible.steps[b].execute();
    fixed.executed += fixed.steps[b].execute();
    tokens += static_cast<double>(std::accumulate(batches[b].begin(), batches[b].end(), std::int64_t{0}));
  }
  Line gain = line_of(fmt::format("8 paced ranks: flexible / best static ({})", name), "tokens/s");
  gain.value = tokens / flexible.executed, gain.yardstick = tokens / fixed.executed, gain.ratio = gain.value / gain.yardstick;
  gain.goal = Goal{.due = 1.25, .stretch = {}, .at_most = false};
  gain.more = {{"simulated", fixed.simulated / flexible.simulated}, {"predicted", fixed.predicted / flexible.predicted}};
  return {gain, against_simulator("flexible", flexible), against_simulator("best static", fixed)};
}

}  // namespace periplus::launch::bench
