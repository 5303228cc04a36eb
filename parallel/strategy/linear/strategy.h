#pragma once

#include <span>
#include <string>
#include <string_view>

#include "parallel/linear_attention.h"
#include "parallel/plan/builder.h"
#include "parallel/strategy/linear/unit_pass.h"

namespace periplus::strategy::linear {

/// One row per way in which states get from rank to rank. To add one: write its fragment in a file of its own and a row in
/// strategy.cpp.
struct Strategy {
  std::string_view name;
  std::string_view summary;
  /// Groups of heads by its own choice, at most as many as heads; 0: it has no use for the option.
  int pieces;
  bool gathers_transitions;  ///< Which can be kept for backward.
  void (*emit)(plan::ProgramBuilder& program, UnitPass& pass);
  /// Bytes of all ranks together, by closed formula.
  std::int64_t (*bytes_sent)(const LinearAttentionProblem& problem, const LinearAttentionOptions& options, Pass pass);
};

std::span<const Strategy> strategies() noexcept;
/// Throws InvalidArgument that lists the names.
const Strategy& find_strategy(std::string_view name);
/// Empty, or why this strategy cannot plan this and what to choose instead, unused options included.
std::string refusal(const Strategy& strategy, const LinearAttentionProblem& problem, const LinearAttentionOptions& options);
/// Groups of heads of a plan that is not refused.
int pieces_of(const Strategy& strategy, const LinearAttentionProblem& problem, const LinearAttentionOptions& options, const Units& units);

}  // namespace periplus::strategy::linear
