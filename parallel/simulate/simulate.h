#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "parallel/plan/plan.h"
#include "runtime/comm/pacing.h"
#include "runtime/trace.h"

namespace periplus::simulate {

/// How long things take, in seconds.
struct Costs {
  /// A compute step of a rank.
  std::function<double(const plan::Program& program, const plan::Step& step)> compute;
  /// Messages move over these links from the time at which both their exchanges have started.
  comm::Links links = {};
  /// A compute step takes so many times as long while messages of its rank move; 1 or more.
  double overlap_slowdown = 1;
  /// Of an exchange with all other ranks of a group, by the size of the group from three on: what a device sends a second, its own part
  /// counted too. Its messages then keep out of the links.
  std::map<int, double> all_to_all = {};
  std::vector<double> starts = {};  ///< When each rank begins; empty: all at 0.
};

struct RankTime {
  double finish = 0;   ///< When its last step ends; its start if it has none.
  double compute = 0;  ///< Sum of its compute steps.
  double exposed = 0;  ///< Waits for messages: gaps in its compute queue, and after it.
};

struct Timeline {
  double makespan = 0;
  std::vector<RankTime> ranks;
  std::vector<Tracer> traces;  ///< One event per step, for to_chrome_trace.
};

/// Runs the execution model of plan.h with the given times: an event is the end of a step, and what it lets start, starts.
/// An exchange ends when all its messages have arrived. The plan must verify. Cost: O(log) of steps and messages each.
Timeline simulate(const plan::Plan& plan, const Costs& costs);

}  // namespace periplus::simulate
