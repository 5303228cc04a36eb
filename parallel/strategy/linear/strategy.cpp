#include "parallel/strategy/linear/strategy.h"

#include <algorithm>
#include <array>

#include <fmt/format.h>

#include "parallel/strategy/linear/chain.h"
#include "parallel/strategy/linear/lasp2.h"
#include "runtime/error.h"

namespace periplus::strategy::linear {
namespace {

// The order is that of help pages.
const std::array kStrategies{lasp2_strategy(), lasp_strategy(), all_scan_strategy()};

}  // namespace

std::span<const Strategy> strategies() noexcept { return kStrategies; }

const Strategy& find_strategy(std::string_view name) {
  std::string names;
  for (const Strategy& strategy : kStrategies) {
    if (strategy.name == name) return strategy;
    names += (names.empty() ? "" : ", ") + std::string(strategy.name);
  }
  throw InvalidArgument(fmt::format("linear attention: strategy '{}' is not known; there are: {}", name, names));
}

std::string refusal(const Strategy& strategy, const LinearAttentionProblem& problem, const LinearAttentionOptions& options) {
  if (options.pieces != 0 && strategy.pieces == 0) return "it has no use for the option pieces; leave that out";
  if (options.pieces < 0 || options.pieces > problem.heads) {
    return fmt::format("{} pieces of {} heads; use 1 to {}, or 0 for the strategy's own choice", options.pieces, problem.heads,
                       problem.heads);
  }
  if (options.keep_transitions && !problem.delta_rule) {
    return "transitions are gathered again for next to nothing but in the delta rule; leave keep_transitions out";
  }
  if (options.keep_transitions && !strategy.gathers_transitions) {
    return "it gathers no transitions that could be kept; leave keep_transitions out, or use strategy lasp2";
  }
  const std::int64_t units = Units(problem.layout).most_per_rank();
  if (units > 2 && !options.any_layout) {
    return fmt::format(
        "layout {} cuts the tokens of a rank into up to {} units, each of which moves a state of its own; use layout zigzag or "
        "contiguous, or set any_layout",
        to_string(problem.layout.kind()), units);
  }
  return {};
}

int pieces_of(const Strategy& strategy, const LinearAttentionProblem& problem, const LinearAttentionOptions& options, const Units& units) {
  if (options.pieces != 0) return options.pieces;
  // Groups are there to hide messages; without any, kernels do best with all heads at once.
  return units.any_goes_on() ? std::clamp(strategy.pieces, 1, problem.heads) : 1;
}

}  // namespace periplus::strategy::linear
