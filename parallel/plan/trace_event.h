#pragma once

#include "parallel/plan/plan.h"
#include "runtime/trace.h"

namespace periplus::plan {

/// A finished step as traces show it, on the track of its queue; executor and simulator share it.
TraceEvent trace_event(const Program& program, StepId id, double begin_us, double duration_us);

}  // namespace periplus::plan
