#pragma once

#include <span>

#include "parallel/execute/rehearse.h"
#include "parallel/plan/plan.h"
#include "runtime/comm/pacing.h"
#include "runtime/trace.h"

/// What a plan can and does take over links of a given speed, by arithmetic and in the simulator; execute::rehearse measures it.
namespace periplus::launch::bench {

/// What bounds a plan: the busiest rank's compute, and the busiest port's messages.
struct Bounds {
  double compute = 0, link = 0;
};
Bounds bounds_of(const plan::Plan& plan, const comm::Links& links, const execute::Pace& pace);

/// How long ranks had exchanges under way, and how much of that they had nothing to compute: summed over ranks.
struct Exposure {
  double exposed_us = 0, under_way_us = 0;
  Exposure& operator+=(const Exposure& other);
  double share() const { return under_way_us > 0 ? exposed_us / under_way_us : 0; }
};
/// As the traces of a run, measured or simulated, show it.
Exposure exposure_of(std::span<const Tracer> traces);

/// Makespan in the simulator.
double simulated_seconds(const plan::Plan& plan, const comm::Links& links, const execute::Pace& pace);

}  // namespace periplus::launch::bench
