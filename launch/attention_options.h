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
/// Rows of a machine's numbers: --rank-gflops, --link-gbytes, ... `purpose` begins their help.
void add_machine_options(OptionTable& table, Machine& machine, const std::string& purpose);
/// Strategy (with "auto") and layout, the options of strategies, and the machine of "auto".
void add_strategy_options(OptionTable& table, AttentionOptions& how, std::string& layout);

/// All that flags say of one attention.
struct AttentionSettings {
  AttentionOptions how;
  std::string layout = "zigzag";
  MaskOptions mask;
  double scale = 0, softcap = 0;

  void add_to(OptionTable& table);
  /// Of `table`, which was parsed; heads and types are the caller's.
  AttentionProblem problem(const OptionTable& table, const std::vector<std::int64_t>& cu_seqlens, int ranks) const;
};

/// Puts the strategy that is chosen for the problem in place of "auto", and says why.
void resolve_auto(const OptionTable& table, const AttentionProblem& problem, AttentionOptions& how);

}  // namespace periplus::launch
