#include "launch/attention_options.h"

#include <fmt/format.h>

#include "launch/commands.h"
#include "launch/descriptions.h"
#include "parallel/balanced_layout.h"
#include "parallel/choose.h"
#include "parallel/layout.h"
#include "parallel/strategy/strategy.h"
#include "runtime/error.h"

namespace periplus::launch {

std::vector<std::string> strategy_names() {
  std::vector<std::string> names;
  for (const strategy::Strategy& strategy : strategy::strategies()) names.emplace_back(strategy.name);
  return names;
}

std::vector<std::string> layout_names() {
  std::vector<std::string> names;
  for (const LayoutKind kind :
       {LayoutKind::contiguous, LayoutKind::zigzag, LayoutKind::striped, LayoutKind::document_zigzag, LayoutKind::balanced}) {
    names.emplace_back(to_string(kind));
  }
  return names;
}

void add_mask_options(OptionTable& table, MaskOptions& options) {
  table.add({.key = "mask.causal", .flag = "causal", .target = &options.causal, .help = "A token sees itself and what came before."});
  table.add({.key = "mask.full", .flag = "full", .target = &options.full, .help = "A token sees its whole document."});
  table.add({.key = "mask.window",
             .flag = "window",
             .target = &options.window,
             .value = "L,R",
             .help = "A token sees at most L tokens back and R ahead; -1: no limit; L alone with a causal mask.",
             .least = -1});
  table.add({.key = "mask.sink_tokens",
             .flag = "sink-tokens",
             .target = &options.sink_tokens,
             .value = "N",
             .help = "The first N tokens of a document stay visible outside the window.",
             .least = 0});
}

MaskSpec mask_spec(const MaskOptions& options, const OptionTable& table) {
  if (options.full && table.given("causal") && options.causal)
    throw InvalidArgument("--causal and --full contradict each other; choose one");
  MaskSpec spec;
  spec.causal = options.causal && !options.full;
  spec.sink_tokens = options.sink_tokens;
  const std::vector<std::int64_t>& window = options.window;
  if (!window.empty()) {
    if (window.size() == 1 && !spec.causal) {
      throw InvalidArgument(fmt::format("--window {} takes two numbers with --full; e.g. --window {},{}", window[0], window[0], window[0]));
    }
    if (window.size() > 2) throw InvalidArgument(fmt::format("--window takes two numbers, L,R, not {}", window.size()));
    spec.window_left = window[0];
    spec.window_right = window.size() == 2 ? window[1] : 0;
    if (spec.causal && spec.window_right > 0) {
      throw InvalidArgument(
          fmt::format("--window {},{} looks ahead but the mask is causal; use {},0 or --full", window[0], window[1], window[0]));
    }
  }
  if (spec.sink_tokens > 0 && spec.window_left < 0) {
    throw InvalidArgument(fmt::format("--sink-tokens {} has no effect without a limit to the left; add --window L,R", spec.sink_tokens));
  }
  return spec;
}

std::string to_text(const MaskSpec& spec) {
  std::string text = spec.causal ? "causal" : "full";
  if (spec.causal) {
    if (spec.window_left >= 0) text += fmt::format(" window {}", spec.window_left);
  } else if (spec.window_left >= 0 || spec.window_right >= 0) {
    text += fmt::format(" window {},{}", spec.window_left, spec.window_right);
  }
  if (spec.sink_tokens > 0) text += fmt::format(" sink tokens {}", spec.sink_tokens);
  return text;
}

void add_strategy_and_layout(OptionTable& table, std::string& strategy, std::string& layout, const std::vector<std::string>& more) {
  std::vector<std::string> strategies = strategy_names(), layouts = layout_names();
  strategies.insert(strategies.end(), more.begin(), more.end());
  if (layout == "all") layouts.emplace_back("all");
  table.add({.key = "parallel.strategy",
             .flag = "strategy",
             .target = &strategy,
             .value = "NAME",
             .help = "How attention is distributed:",
             .choices = std::move(strategies)});
  table.add({.key = "parallel.layout",
             .flag = "layout",
             .target = &layout,
             .value = "NAME",
             .help = "Which rank owns which tokens:",
             .choices = std::move(layouts)});
}

void add_strategy_options(OptionTable& table, AttentionOptions& how, std::string& layout) {
  add_strategy_and_layout(table, how.strategy, layout, {"auto"});
  table.add({.key = "parallel.pieces",
             .flag = "pieces",
             .target = &how.pieces,
             .value = "N",
             .help = "Rings: parts of a block by KV heads, so that work starts when the first is there.",
             .least = 1});
  table.add({.key = "parallel.stages",
             .flag = "stages",
             .target = &how.stages,
             .value = "N",
             .help = "gather_kv, group_cast: exchanges that keys come in; 0: the strategy's choice.",
             .least = 0});
  table.add({.key = "parallel.head_ranks",
             .flag = "head-ranks",
             .target = &how.head_ranks,
             .value = "N",
             .help = "usp: ranks that share heads, the others form rings; 0: as many as the heads allow.",
             .least = 0});
  table.add({.key = "parallel.placement",
             .flag = "placement",
             .target = &how.placement,
             .value = "NAME",
             .help = "usp: which ranks are neighbours, those that share heads or those of a ring:",
             .choices = {"head_first", "context_first"}});
  table.add({.key = "parallel.ranks_per_node",
             .flag = "ranks-per-node",
             .target = &how.ranks_per_node,
             .value = "N",
             .help = "Ranks that a fast network joins, for double_ring and usp; 0: not told.",
             .least = 0});
}

void add_machine_option(OptionTable& table, std::string& machine) {
  table.add(
      {.key = "parallel.machine",
       .flag = "machine",
       .target = &machine,
       .value = "NAME|FILE",
       .help = "Strategy auto: the machine it chooses for, as in examples/machines; periplus calibrate writes the file of this one."});
}

void AttentionSettings::add_to(OptionTable& table) {
  add_strategy_options(table, how, layout);
  add_machine_option(table, machine);
  add_mask_options(table, mask);
  table.add({.key = "attention.scale",
             .flag = "scale",
             .target = &scale,
             .value = "X",
             .help = "Factor of the scores; 0: 1/sqrt(head size).",
             .least = 0});
  table.add({.key = "attention.softcap",
             .flag = "softcap",
             .target = &softcap,
             .value = "X",
             .help = "Scores s become X tanh(s / X) before the mask; 0: they stay.",
             .least = 0});
}

AttentionProblem AttentionSettings::problem(const OptionTable& table, const std::vector<std::int64_t>& cu_seqlens, int ranks) const {
  const Mask what(mask_spec(mask, table), cu_seqlens);
  AttentionProblem problem{.layout = make_layout(layout_kind_from_string(layout), ranks, what), .mask = what};
  problem.scale = scale;
  problem.softcap = softcap;
  return problem;
}

void use_named_machine(const std::string& machine, const AttentionProblem& problem, AttentionOptions& how) {
  if (how.strategy != "auto") {
    if (!machine.empty())
      throw InvalidArgument(
          fmt::format("--machine {} has no effect with --strategy {}: only auto chooses by a machine", machine, how.strategy));
    return;
  }
  if (machine.empty()) {
    throw InvalidArgument(
        "--strategy auto chooses for a machine: name one with --machine NAME|FILE; periplus calibrate writes the file of this one");
  }
  const int ranks = problem.layout.ranks();
  use_machine(how, load_simulated_machine(machine), ranks, problem.layout.tokens() / ranks);
}

void resolve_auto(const OptionTable& table, const std::string& machine, const AttentionProblem& problem, AttentionOptions& how, int rank) {
  use_named_machine(machine, problem, how);
  if (how.strategy != "auto") return;
  const Choice choice = choose_strategy(problem, how);
  if (rank == 0) say(table, "strategy auto: " + choice.why);
  how = choice.options;
}

}  // namespace periplus::launch
