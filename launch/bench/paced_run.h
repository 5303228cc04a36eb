#pragma once

#include <functional>
#include <vector>

#include "parallel/plan/plan.h"
#include "runtime/comm/pacing.h"

/// Plans run on ranks that are threads, over paced links, with compute steps that sleep: what the executor and a schedule
/// cost, measured with more ranks than cores and nearly without noise.
namespace periplus::launch::bench {

using StepTime = std::function<double(const plan::Program&, const plan::Step&)>;

struct PacedRun {
  double seconds = 0;                             ///< From the common start to the end of the last rank.
  std::int64_t bytes_sent = 0;                    ///< As the transport counts, all ranks.
  std::vector<std::vector<double>> step_seconds;  ///< Measured, by rank and step.
};
PacedRun run_paced(const plan::Plan& plan, const comm::Links& links, const StepTime& pace);

/// What bounds a plan: the busiest rank's compute, and the busiest port's messages.
struct Bounds {
  double compute = 0, link = 0;
};
Bounds bounds_of(const plan::Plan& plan, const comm::Links& links, const StepTime& pace);

/// Makespan in the simulator; with `measured` the step times of a run take the place of the modelled ones.
double simulated_seconds(const plan::Plan& plan, const comm::Links& links, const StepTime& pace);
StepTime measured_times(const PacedRun& run);

}  // namespace periplus::launch::bench
