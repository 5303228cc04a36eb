#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "parallel/attention.h"
#include "parallel/balanced_layout.h"
#include "parallel/strategy/strategy.h"

// Attention problems that several tests of plans share.
namespace periplus {

inline void PrintTo(const AttentionOptions& options, std::ostream* out) { *out << options.strategy; }

namespace test {

using Lengths = std::vector<std::int64_t>;

inline const std::vector<LayoutKind> kLayoutKinds{LayoutKind::contiguous, LayoutKind::zigzag, LayoutKind::striped,
                                                  LayoutKind::document_zigzag, LayoutKind::balanced};

inline Lengths borders(const Lengths& lengths) {
  Lengths cu{0};
  for (const std::int64_t length : lengths) cu.push_back(cu.back() + length);
  return cu;
}

/// Small heads; head and value size are equal so that a plan that confuses k with v is still well formed.
inline AttentionProblem ring_problem(LayoutKind layout, int ranks, const Lengths& cu, const MaskSpec& mask = {}, int q_heads = 4,
                                     int kv_heads = 2) {
  AttentionProblem problem{make_layout(layout, ranks, Mask(mask, cu)), Mask(mask, cu)};
  problem.q_heads = q_heads, problem.kv_heads = kv_heads, problem.head_size = problem.value_size = 8;
  return problem;
}

inline std::string describe(LayoutKind layout, int ranks, const Lengths& cu, const MaskSpec& mask, Pass pass) {
  std::string text(to_string(layout));
  text += " ranks " + std::to_string(ranks) + (pass == Pass::forward ? " forward" : " backward") + (mask.causal ? " causal" : " full");
  text += " window " + std::to_string(mask.window_left) + "," + std::to_string(mask.window_right) + " sinks " +
          std::to_string(mask.sink_tokens) + " tokens " + std::to_string(cu.back()) + " in " + std::to_string(cu.size() - 1);
  return text;
}

/// Every strategy of the table, and its options where they change the plan.
inline std::vector<AttentionOptions> variants() {
  std::vector<AttentionOptions> all;
  for (const strategy::Strategy& strategy : strategy::strategies()) all.push_back({.strategy = std::string(strategy.name)});
  all.push_back({.strategy = "auto"});
  all.push_back({.strategy = "ring", .pieces = 2});
  all.push_back({.strategy = "bidirectional_ring", .pieces = 3});
  all.push_back({.strategy = "double_ring", .pieces = 2, .ranks_per_node = 2});
  all.push_back({.strategy = "gather_kv", .stages = 1});
  all.push_back({.strategy = "group_cast", .stages = 1});
  all.push_back({.strategy = "ulysses", .pieces = 2});
  all.push_back({.strategy = "usp", .head_ranks = 2});
  all.push_back({.strategy = "usp", .head_ranks = 2, .placement = "context_first"});
  all.push_back({.strategy = "usp", .head_ranks = 2, .ranks_per_node = 4});
  return all;
}

inline std::string name_of(const AttentionOptions& options) {
  std::string name = options.strategy;
  if (options.pieces != 1) name += fmt::format("_pieces{}", options.pieces);
  if (options.stages != 0) name += fmt::format("_stages{}", options.stages);
  if (options.head_ranks != 0) name += fmt::format("_heads{}", options.head_ranks);
  if (options.ranks_per_node != 0) name += fmt::format("_nodes{}", options.ranks_per_node);
  return name + (options.placement != "head_first" ? "_" + options.placement : "");
}

/// For test suites with options as their parameter.
inline constexpr auto name_of_param = [](const auto& test) { return name_of(test.param); };

/// Why the strategy refuses the problem; empty if it does not. "auto" always finds one.
inline std::string refusal(const AttentionProblem& problem, const AttentionOptions& options) {
  return options.strategy == "auto" ? "" : strategy::refusal(strategy::find_strategy(options.strategy), problem, options);
}

}  // namespace test
}  // namespace periplus
