#pragma once

#include <span>

#include "parallel/plan/plan.h"
#include "runtime/trace.h"

namespace periplus::plan {

/// A finished step as traces show it, on the track of its queue; executor and simulator share it. `world_ranks`: rank of the
/// tracers by rank of the plan; empty: the same numbers.
TraceEvent trace_event(const Program& program, StepId id, double begin_us, double duration_us, std::span<const int> world_ranks = {});

}  // namespace periplus::plan
