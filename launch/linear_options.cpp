#include "launch/linear_options.h"

#include <fmt/format.h>

#include "parallel/strategy/linear/strategy.h"
#include "runtime/error.h"

namespace periplus::launch {

std::vector<std::string> linear_strategy_names() {
  std::vector<std::string> names;
  for (const strategy::linear::Strategy& strategy : strategy::linear::strategies()) names.emplace_back(strategy.name);
  return names;
}

std::vector<std::string> linear_layout_names() {
  std::vector<std::string> names;
  for (const LayoutKind kind : {LayoutKind::contiguous, LayoutKind::zigzag, LayoutKind::striped, LayoutKind::document_zigzag}) {
    names.emplace_back(to_string(kind));
  }
  return names;
}

void add_linear_strategy_options(OptionTable& table, LinearAttentionOptions& how, std::string& layout) {
  table.add({.key = "parallel.strategy",
             .flag = "strategy",
             .target = &how.strategy,
             .value = "NAME",
             .help = "How states get from rank to rank:",
             .choices = linear_strategy_names()});
  table.add({.key = "parallel.layout",
             .flag = "layout",
             .target = &layout,
             .value = "NAME",
             .help = "Which rank owns which tokens:",
             .choices = linear_layout_names()});
  table.add({.key = "parallel.pieces",
             .flag = "pieces",
             .target = &how.pieces,
             .value = "N",
             .help = "Groups of heads whose states travel one after the other; 0: the strategy's choice.",
             .least = 0});
  table.add({.key = "parallel.any_layout",
             .flag = "any-layout",
             .target = &how.any_layout,
             .help = "Also layouts with more than two runs of tokens on a rank, each of which moves a state."});
  table.add({.key = "parallel.keep_transitions",
             .flag = "keep-transitions",
             .target = &how.keep_transitions,
             .help = "Delta rule by lasp2: keep gathered transitions for backward, which else gathers them again."});
}

void LinearSumOptions::apply_to(LinearAttentionProblem& problem) const {
  if (!normalise && epsilon != kNormaliserEpsilon) {
    throw InvalidArgument(
        fmt::format("--epsilon: {} is added to a normaliser, and there is none; add --normalise or leave it out", epsilon));
  }
  problem.bidirectional = bidirectional;
  problem.normalise = normalise;
  problem.epsilon = epsilon;
}

void add_linear_sum_options(OptionTable& table, LinearSumOptions& options) {
  table.add({.key = "linear.bidirectional",
             .flag = "bidirectional",
             .target = &options.bidirectional,
             .help = "Each token attends to all of its document, also to the tokens behind it."});
  table.add({.key = "linear.normalise",
             .flag = "normalise",
             .target = &options.normalise,
             .help = "Divide out by the sum of its weights (and epsilon); they should not cancel."});
  table.add({.key = "linear.epsilon",
             .flag = "epsilon",
             .target = &options.epsilon,
             .value = "X",
             .help = "Added to the sum of the weights.",
             .least = 0});
}

void LinearSettings::add_to(OptionTable& table, bool delta_rule) {
  add_linear_strategy_options(table, how, layout);
  table.add(
      {.key = "linear.scale", .flag = "scale", .target = &scale, .value = "X", .help = "Factor of q; 0: 1/sqrt(head size).", .least = 0});
  if (!delta_rule) add_linear_sum_options(table, sums);
}

LinearAttentionProblem LinearSettings::problem(const std::vector<std::int64_t>& cu_seqlens, int ranks) const {
  LinearAttentionProblem problem{.layout = SequenceLayout::make(layout_kind_from_string(layout), ranks, cu_seqlens)};
  problem.scale = scale;
  sums.apply_to(problem);
  return problem;
}

std::string to_text(Decay decay) {
  switch (decay) {
    case Decay::none:
      return "no decay";
    case Decay::scalar:
      return "scalar decay";
    case Decay::diagonal:
      return "diagonal decay";
  }
  return "";
}

}  // namespace periplus::launch
