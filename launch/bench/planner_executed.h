#pragma once

#include <string>
#include <vector>

#include "launch/bench/report.h"

namespace periplus::launch::bench {

/// Flexible plans against the best static kind of group, on 8 thread ranks with paced links and kernels that sleep: tokens/s, and how
/// far the executed steps are from the simulated ones. `data`: its documents' lengths in bytes count as tokens.
std::vector<Line> planner_executed(const std::string& data);

}  // namespace periplus::launch::bench
