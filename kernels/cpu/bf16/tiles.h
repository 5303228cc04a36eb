// The kernels of one tile unit. Included once by each level_<unit>.cpp, after its unit.
#pragma once

#include "kernels/cpu/bf16/backward.h"
#include "kernels/cpu/bf16/forward.h"

namespace periplus::kernels::cpu {
namespace {

constexpr bf16::Kernels kKernels{forward_scratch_bytes, forward_item, backward_scratch_bytes, backward_item};

}  // namespace
}  // namespace periplus::kernels::cpu
