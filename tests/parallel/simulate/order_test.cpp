// Which strategy is faster: the simulator against runs over paced links, with kernels that sleep for their modelled time.
#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "parallel/attention.h"
#include "parallel/balanced_layout.h"
#include "parallel/execute/rehearse.h"
#include "parallel/plan/ops.h"
#include "parallel/simulate/simulate.h"
#include "parallel/strategy/strategy.h"

namespace periplus::simulate {
namespace {

/// A problem and how a rank's share of its flops compares to what a ring of keys and values sends over a link.
struct Setting {
  const char* name;
  int ranks = 8;
  LayoutKind layout = LayoutKind::zigzag;
  std::vector<std::int64_t> documents = {1024};
  MaskSpec mask = {};
  int heads = 16, kv_heads = 8;
  double ring_over_compute = 1;
  int ranks_per_node = 0;
  double between_over_inside = 1;  ///< Rates of links.
  Pass pass = Pass::forward;
};

const std::array<Setting, 10>& settings() {
  static const std::array<Setting, 10> all{{
      {.name = "fast links", .ring_over_compute = 0.6},
      {.name = "even"},
      {.name = "slow links", .ring_over_compute = 3},
      {.name = "as many KV heads", .kv_heads = 16, .ring_over_compute = 2},
      {.name = "few KV heads, slow links", .heads = 32, .ring_over_compute = 4},
      {.name = "no mask", .mask = {.causal = false}, .ring_over_compute = 1.5},
      {.name = "whole blocks", .layout = LayoutKind::contiguous, .ring_over_compute = 0.5},
      {.name = "documents", .documents = {100, 300, 24, 600}, .ring_over_compute = 1.5},
      {.name = "two nodes", .ring_over_compute = 0.7, .ranks_per_node = 4, .between_over_inside = 0.25},
      {.name = "backward", .ring_over_compute = 2, .pass = Pass::backward},
  }};
  return all;
}

constexpr double kComputeSeconds = 0.03;

struct Candidate {
  std::string name;
  double simulated = 0, measured = 0;
};

class Case {
 public:
  explicit Case(const Setting& setting) : setting_(setting), problem_(make_problem(setting)) {
    // A rank's share of all flops takes kComputeSeconds, a ring's bytes of a rank the multiple of that.
    double flops = 0;
    for (const plan::Program& program : make_plan(problem_, {}, setting.pass).programs)
      for (const plan::Step& step : program.steps) flops += plan::flops(program, step);
    flops_per_second_ = flops / setting.ranks / kComputeSeconds;
    const double bytes = 2.0 * static_cast<double>(problem_.layout.tokens()) * setting.kv_heads * problem_.head_size * 2;
    const double rate = bytes / (setting.ring_over_compute * kComputeSeconds);
    links_.inside = {.bytes_per_second = rate, .latency_seconds = 1e-4};
    links_.between = {.bytes_per_second = rate * setting.between_over_inside, .latency_seconds = 3e-4};
    links_.ranks_per_node = setting.ranks_per_node;
  }

  std::vector<Candidate> candidates() const {
    std::vector<Candidate> all;
    for (const char* const name : {"ring", "bidirectional_ring", "gather_kv", "token_ring", "ulysses", "usp", "double_ring"}) {
      const AttentionOptions how = options(name);
      if (strategy::refusal(strategy::find_strategy(name), problem_, how).empty()) all.push_back(run(how));
    }
    return all;
  }

 private:
  static AttentionProblem make_problem(const Setting& setting) {
    std::vector<std::int64_t> borders{0};
    for (const std::int64_t length : setting.documents) borders.push_back(borders.back() + length);
    const Mask mask(setting.mask, borders);
    AttentionProblem problem{.layout = make_layout(setting.layout, setting.ranks, mask), .mask = mask};
    problem.q_heads = setting.heads, problem.kv_heads = setting.kv_heads, problem.head_size = 16, problem.dtype = DType::bf16;
    return problem;
  }
  AttentionOptions options(const char* name) const {
    AttentionOptions how{.strategy = name};
    if ((strategy::find_strategy(name).knobs & strategy::kRanksPerNode) != 0) how.ranks_per_node = setting_.ranks_per_node;
    return how;
  }
  Candidate run(const AttentionOptions& how) const {
    const plan::Plan plan = make_plan(problem_, how, setting_.pass);
    const auto pace = [this](const plan::Program& program, const plan::Step& step) {
      return plan::flops(program, step) / flops_per_second_;
    };
    Candidate candidate{.name = how.strategy, .simulated = simulate(plan, {.compute = pace, .links = links_}).makespan};
    // A busy machine only delays: the least of three counts.
    candidate.measured = 1e30;
    for (int i = 0; i < 3; ++i) candidate.measured = std::min(candidate.measured, execute::rehearse(plan, links_, pace).seconds);
    return candidate;
  }

  const Setting& setting_;
  AttentionProblem problem_;
  comm::Links links_;
  double flops_per_second_ = 1;
};

/// Pairs that the simulator holds apart and that run the other way round. Closer than the executor's allowance, they are as good as equal.
std::vector<std::string> reversed(const std::vector<Candidate>& candidates) {
  constexpr double kTie = 1.05;
  std::vector<std::string> pairs;
  for (const Candidate& a : candidates)
    for (const Candidate& b : candidates)
      if (a.simulated * kTie < b.simulated && a.measured >= b.measured)
        pairs.push_back(fmt::format("{} before {}: {:.1f} < {:.1f} ms simulated, {:.1f} >= {:.1f} measured", a.name, b.name,
                                    a.simulated * 1e3, b.simulated * 1e3, a.measured * 1e3, b.measured * 1e3));
  return pairs;
}

TEST(Order, OfStrategiesIsThatMeasuredOverPacedLinks) {
  int right = 0;
  std::string wrong;
  for (const Setting& setting : settings()) {
    const std::vector<Candidate> candidates = Case(setting).candidates();
    ASSERT_GE(candidates.size(), 4u) << setting.name;
    // An order that holds because all are equal says nothing.
    const auto [least, most] = std::ranges::minmax_element(candidates, {}, &Candidate::simulated);
    EXPECT_GT(most->simulated, 1.2 * least->simulated) << setting.name;
    const std::vector<std::string> pairs = reversed(candidates);
    right += pairs.empty() ? 1 : 0;
    for (const std::string& pair : pairs) wrong += fmt::format("{}: {}\n", setting.name, pair);
  }
  RecordProperty("settings_in_order", right);
  EXPECT_GE(right, 8) << wrong;
}

}  // namespace
}  // namespace periplus::simulate
