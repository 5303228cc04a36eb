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

/// Rows --strategy and --layout; `all` adds that word to what both accept.
void add_strategy_and_layout(OptionTable& table, std::string& strategy, std::string& layout, bool all = false);
/// These and the options of strategies: --pieces, --stages, ...
void add_strategy_options(OptionTable& table, AttentionOptions& how, std::string& layout);

}  // namespace periplus::launch
