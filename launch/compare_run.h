#pragma once

#include <string>

#include "launch/options.h"
#include "parallel/simulate/machine.h"

namespace periplus::launch {

/// Replays the steps of a finished run of `periplus train`: the rows that its configuration and data give are planned and
/// simulated on the machine, and stand beside the measured times. Needs the run's checkpoint (its configuration) and the data
/// where they were. Returns an exit code. Errors: InvalidArgument for a folder without them, or kinds of layers that the
/// simulator does not know.
int compare_with_run(const OptionTable& table, const std::string& folder, const simulate::Machine& machine);

}  // namespace periplus::launch
