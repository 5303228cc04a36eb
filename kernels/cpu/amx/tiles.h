// The kernels of one tile unit. Included once by each tiles_<unit>.cpp, after its unit.
#pragma once

#include "kernels/cpu/amx/backward.h"
#include "kernels/cpu/amx/forward.h"

namespace periplus::kernels::cpu {
namespace {

constexpr amx::Kernels kKernels{forward_scratch_bytes, forward_item, backward_scratch_bytes, backward_item};

}  // namespace
}  // namespace periplus::kernels::cpu
