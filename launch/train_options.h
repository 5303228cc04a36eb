#pragma once

#include "launch/options.h"
#include "launch/ranks.h"
#include "parallel/train/config.h"

namespace periplus::launch {

/// Rows of all keys of train::Config; `ranks` carries run.deadline_seconds.
void add_train_options(OptionTable& table, train::Config& config, RankOptions& ranks, Devices devices = Devices::cpu_only);

/// Errors: InvalidArgument for a strategy, or an option of one, that was typed beside a planner, also where it is the default, which
/// train::check cannot tell.
void check_planner_options(const OptionTable& table, const train::Config& config);

}  // namespace periplus::launch
