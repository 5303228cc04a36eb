// The tile kernels of one instruction set. Included once by each level_<level>.cpp, after its registers_<bits>.h.
#pragma once

#include "kernels/cpu/backward_tile.h"
#include "kernels/cpu/forward_tile.h"

namespace periplus::kernels::cpu {
namespace {

template <class S>
constexpr TileKernels<S> kTileKernels{forward_scratch_bytes, backward_scratch_bytes, forward_tile<S>, backward_tile<S>};
constexpr KernelSet<TileKernels> kAllTileKernels{kTileKernels<float>, kTileKernels<bfloat16>, kTileKernels<float16>};

}  // namespace
}  // namespace periplus::kernels::cpu
