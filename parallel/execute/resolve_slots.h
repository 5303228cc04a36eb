#pragma once

#include <vector>

#include "parallel/execute/execute.h"

namespace periplus::execute {

/// One tensor per slot: what is bound, and scratch cut out of the workspace. Errors: InvalidArgument, before anything is sent, for bindings
/// that the plan does not fit, that kernels cannot use, that come twice, or whose results share memory with another tensor; and for a
/// workspace that is not as Context says.
std::vector<TensorView> resolve_slots(const plan::Program& program, const Bindings& bindings, TensorView workspace);

}  // namespace periplus::execute
