#include "parallel/strategy/strategy.h"

#include <array>
#include <utility>

#include <fmt/format.h>

#include "parallel/strategy/balanced_helper.h"
#include "parallel/strategy/gather.h"
#include "parallel/strategy/ring.h"
#include "parallel/strategy/token_ring.h"
#include "parallel/strategy/ulysses.h"
#include "runtime/error.h"

namespace periplus::strategy {
namespace {

// Rows are functions of their own files; the order is that of help pages.
const std::array kStrategies{
    ring_strategy(), bidirectional_ring_strategy(), double_ring_strategy(),     gather_kv_strategy(), group_cast_strategy(),
    halo_strategy(), token_ring_strategy(),         balanced_helper_strategy(), ulysses_strategy(),   usp_strategy()};

}  // namespace

RunningState running_state(plan::ProgramBuilder& program, const ForwardSlots& on) {
  const DType accumulator = accumulator_of(program.dtype_of(on.out));
  return {program.scratch("state.out", accumulator, on.out.rows, on.out.heads, program.width_of(on.out)),
          program.scratch("state.lse", accumulator, on.lse.rows, on.lse.heads, 1)};
}

plan::View sum_of(plan::ProgramBuilder& program, plan::View result, std::string name) {
  const DType storage = program.dtype_of(result), accumulator = accumulator_of(storage);
  if (storage == accumulator) return result;
  return program.scratch(std::move(name), accumulator, result.rows, result.heads, program.width_of(result));
}

void settle(plan::ProgramBuilder& program, plan::View sum, plan::View result) {
  if (sum.slot != result.slot) program.copy({"cast"}, sum, result);
}

std::span<const Strategy> strategies() noexcept { return kStrategies; }

const Strategy& find_strategy(std::string_view name) {
  std::string names;
  for (const Strategy& strategy : kStrategies) {
    if (strategy.name == name) return strategy;
    names += (names.empty() ? "" : ", ") + std::string(strategy.name);
  }
  throw InvalidArgument(fmt::format("strategy '{}' is not known; there are: {}", name, names));
}

std::string refusal(const Strategy& strategy, const AttentionProblem& problem, const AttentionOptions& options) {
  const AttentionOptions unset;
  const auto unused = [&](Knob knob, bool given, std::string_view name) {
    return given && (strategy.knobs & knob) == 0 ? fmt::format("it has no use for the option {}; leave that out", name) : std::string();
  };
  for (std::string reason :
       {unused(kPieces, options.pieces != unset.pieces, "pieces"), unused(kStages, options.stages != unset.stages, "stages"),
        unused(kHeadRanks, options.head_ranks != unset.head_ranks, "head_ranks"),
        unused(kPlacement, options.placement != unset.placement, "placement"),
        unused(kRanksPerNode, options.ranks_per_node != unset.ranks_per_node, "ranks_per_node"),
        unused(kMachine, !(options.machine == unset.machine), "machine, the figures such as link_gbytes that strategy auto chooses by")}) {
    if (!reason.empty()) return reason;
  }
  if (options.pieces < 1 || options.stages < 0 || options.head_ranks < 0 || options.ranks_per_node < 0)
    return "pieces must be at least 1; stages, head_ranks and ranks_per_node at least 0";
  if (options.placement != "head_first" && options.placement != "context_first")
    return fmt::format("placement '{}' is not known; use head_first or context_first", options.placement);
  return strategy.refusal(problem, options);
}

}  // namespace periplus::strategy
