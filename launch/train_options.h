#pragma once

#include "launch/options.h"
#include "launch/ranks.h"
#include "parallel/train/config.h"

namespace periplus::launch {

/// Rows of all keys of train::Config; `ranks` carries run.deadline_seconds.
void add_train_options(OptionTable& table, train::Config& config, RankOptions& ranks, Devices devices = Devices::cpu_only);

}  // namespace periplus::launch
