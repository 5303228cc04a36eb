#pragma once

#include <functional>
#include <string>
#include <vector>

#include "parallel/plan/plan.h"
#include "runtime/trace.h"

namespace periplus::simulate {

/// How long things take, in seconds.
struct Costs {
  /// A compute step of a rank.
  std::function<double(const plan::Program& program, const plan::Step& step)> compute;
  /// One message, from when both its exchanges have started.
  std::function<double(plan::Rank from, plan::Rank to, std::int64_t bytes)> message;
};

struct RankTime {
  double finish = 0;   ///< When its last step ends.
  double compute = 0;  ///< Sum of its compute steps.
  double idle = 0;     ///< finish of the whole plan - compute: waiting or done early.
  double exposed = 0;  ///< Waits for messages: gaps in its compute queue, and after it.
};

struct Timeline {
  double makespan = 0;
  std::vector<RankTime> ranks;
  std::vector<Tracer> traces;  ///< One event per step, for to_chrome_trace.
};

/// Runs the execution model of plan.h with the given times. Messages of one exchange move at the same time and do not
/// slow each other; an exchange ends when all of them have. The plan must verify. Cost: O(steps + messages).
Timeline simulate(const plan::Plan& plan, const Costs& costs);

}  // namespace periplus::simulate
