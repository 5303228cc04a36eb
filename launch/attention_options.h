#pragma once

#include <string>
#include <vector>

#include "launch/options.h"
#include "parallel/mask.h"
#include "parallel/problem.h"

namespace periplus::launch {

std::vector<std::string> strategy_names();
std::vector<std::string> layout_names();

/// The mask as flags say it.
struct MaskOptions {
  bool causal = true;
  bool full = false;
  std::vector<std::int64_t> window;
  std::int64_t sink_tokens = 0;
};
void add_mask_options(OptionTable& table, MaskOptions& options);
/// Errors: InvalidArgument for flags that contradict each other or would have no effect.
MaskSpec mask_spec(const MaskOptions& options, const OptionTable& table);

/// "causal window 64 sink tokens 4", "full window 4,3"
std::string to_text(const MaskSpec& spec);

/// Rows --strategy and --layout; strategies may also be one of `more`, and a layout that is "all" may stay so.
void add_strategy_and_layout(OptionTable& table, std::string& strategy, std::string& layout, const std::vector<std::string>& more);
/// Strategy (with "auto") and layout, and the options of strategies.
void add_strategy_options(OptionTable& table, AttentionOptions& how, std::string& layout);
/// Row --machine: what "auto" chooses by.
void add_machine_option(OptionTable& table, std::string& machine);

/// All that flags say of one attention.
struct AttentionSettings {
  AttentionOptions how;
  std::string layout = "zigzag", machine;
  MaskOptions mask;
  double scale = 0, softcap = 0;

  void add_to(OptionTable& table);
  /// Of `table`, which was parsed; heads and types are the caller's.
  AttentionProblem problem(const OptionTable& table, const std::vector<std::int64_t>& cu_seqlens, int ranks) const;
};

/// Gives "auto" the machine that --machine names. Errors: InvalidArgument if only one of the two was given.
void use_named_machine(const std::string& machine, const AttentionProblem& problem, AttentionOptions& how);
/// Puts the strategy that is chosen for the problem on that machine in place of "auto". `rank` of the process: 0 says why.
void resolve_auto(const OptionTable& table, const std::string& machine, const AttentionProblem& problem, AttentionOptions& how,
                  int rank = 0);

}  // namespace periplus::launch
