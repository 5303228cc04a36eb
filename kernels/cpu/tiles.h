// The tile kernels of one instruction set. Included once by each level_<level>.cpp, after its registers_<bits>.h.
#pragma once

#include "kernels/cpu/backward_tile.h"
#include "kernels/cpu/forward_tile.h"

namespace periplus::kernels::cpu {
namespace {

constexpr TileKernels kTileKernels{forward_scratch_bytes, backward_scratch_bytes, forward_tile<float>,     forward_tile<bfloat16>,
                                   forward_tile<float16>, backward_tile<float>,   backward_tile<bfloat16>, backward_tile<float16>};

}  // namespace
}  // namespace periplus::kernels::cpu
