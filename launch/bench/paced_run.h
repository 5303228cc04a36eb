#pragma once

#include "parallel/execute/rehearse.h"
#include "parallel/plan/plan.h"
#include "runtime/comm/pacing.h"

/// What a plan can and does take over links of a given speed, by arithmetic and in the simulator; execute::rehearse measures it.
namespace periplus::launch::bench {

/// What bounds a plan: the busiest rank's compute, and the busiest port's messages.
struct Bounds {
  double compute = 0, link = 0;
};
Bounds bounds_of(const plan::Plan& plan, const comm::Links& links, const execute::Pace& pace);

/// Makespan in the simulator.
double simulated_seconds(const plan::Plan& plan, const comm::Links& links, const execute::Pace& pace);

}  // namespace periplus::launch::bench
