#pragma once

#include <string>
#include <vector>

#include "launch/options.h"
#include "parallel/linear_attention.h"

namespace periplus::launch {

std::vector<std::string> linear_strategy_names();
/// Layouts that keep neighbouring tokens together, or do with --any-layout.
std::vector<std::string> linear_layout_names();

/// Rows --strategy, --layout, --pieces and --any-layout of linear attention.
void add_linear_strategy_options(OptionTable& table, LinearAttentionOptions& how, std::string& layout);

/// Over which tokens linear attention sums, and whether it divides by its weights.
struct LinearSumOptions {
  bool bidirectional = false, normalise = false;
  double epsilon = kNormaliserEpsilon;
  /// Errors: InvalidArgument for an epsilon that nothing is added to.
  void apply_to(LinearAttentionProblem& problem) const;
};
/// Rows --bidirectional, --normalise and --epsilon.
void add_linear_sum_options(OptionTable& table, LinearSumOptions& options);

/// All that flags say of one linear attention or delta rule.
struct LinearSettings {
  LinearAttentionOptions how;
  std::string layout = "zigzag";
  double scale = 0;
  LinearSumOptions sums;

  void add_to(OptionTable& table, bool delta_rule);
  /// Heads, types and decay are the caller's.
  LinearAttentionProblem problem(const std::vector<std::int64_t>& cu_seqlens, int ranks) const;
};

/// "no decay", "scalar decay", "diagonal decay"
std::string to_text(Decay decay);

}  // namespace periplus::launch
