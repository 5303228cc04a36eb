#pragma once

#include <span>

#include "parallel/plan/plan.h"
#include "runtime/device.h"
#include "runtime/tensor.h"

namespace periplus::execute {

/// Runs a step of linear attention on its operands, in the order of plan/ops.h. InternalError if it is of another kind.
void run_recurrence(const plan::Program& program, const plan::Step& step, std::span<const TensorView> operands, StreamView stream);

}  // namespace periplus::execute
