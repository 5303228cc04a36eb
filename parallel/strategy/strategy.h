#pragma once

#include <span>
#include <string>
#include <string_view>

#include "parallel/plan/builder.h"
#include "parallel/problem.h"

namespace periplus::strategy {

/// What a strategy works on in forward. All are the caller's tensors.
struct ForwardSlots {
  plan::View q, k, v, sink;  ///< sink: absent unless the problem has one
  plan::View out, lse;
};

/// And in backward: dq, dk, dv in storage type, of the rank's own rows; delta is already computed.
struct BackwardSlots {
  plan::View q, k, v, dout, lse, delta;
  plan::View dq, dk, dv;
};

/// Where a result in storage type is summed: in place if that is the accumulator type, else in scratch of that name.
/// The first access must write or copy; adding to undefined rows is refused. `settle` ends the sum.
plan::View sum_of(plan::ProgramBuilder& program, plan::View result, std::string name);
void settle(plan::ProgramBuilder& program, plan::View sum, plan::View result);

/// The running state of a rank's own rows, in accumulator type; ProgramBuilder::finish turns it into out and lse.
struct RunningState {
  plan::View out, lse;
};
RunningState running_state(plan::ProgramBuilder& program, const ForwardSlots& on);

/// Lanes by convention: blocks on their way there, results and sums on their way back, and what crosses nodes in a plan that
/// tells nodes apart. Each lane keeps its order, so one does not hold up another.
inline constexpr int kBlockLane = 0, kResultLane = 1, kNodeLane = 2;

/// Members of AttentionOptions that a strategy may listen to.
enum Knob : unsigned { kPieces = 1, kStages = 2, kHeadRanks = 4, kPlacement = 8, kRanksPerNode = 16, kMachine = 32 };

/// One row per strategy. To add one: write its fragments in a file of its own and a row in strategy.cpp.
struct Strategy {
  std::string_view name;
  std::string_view summary;
  unsigned knobs = 0;  ///< Knob bits. Other options must have their defaults.
  /// Empty, or why the problem cannot be planned and what to choose instead.
  std::string (*refusal)(const AttentionProblem& problem, const AttentionOptions& options);
  void (*forward)(plan::ProgramBuilder& program, const AttentionProblem& problem, const AttentionOptions& options, const ForwardSlots& on);
  void (*backward)(plan::ProgramBuilder& program, const AttentionProblem& problem, const AttentionOptions& options,
                   const BackwardSlots& on);
  /// Bytes of all ranks together, by closed formula; -1 where there is no exact one.
  std::int64_t (*bytes_sent)(const AttentionProblem& problem, const AttentionOptions& options, Pass pass);
};

std::span<const Strategy> strategies() noexcept;
/// Throws InvalidArgument that lists the names.
const Strategy& find_strategy(std::string_view name);
/// Empty, or why this strategy cannot plan this, unused options included.
std::string refusal(const Strategy& strategy, const AttentionProblem& problem, const AttentionOptions& options);

}  // namespace periplus::strategy
