namespace periplus::kernels::cpu {
namespace {
constexpr int kLanes = 4;       // f32 in a vector
constexpr int kMaxVectors = 2;  // kMaxRows x kMaxVectors sums and kMaxVectors operands fit the registers
constexpr int kMaxRows = 6;
}  // namespace
}  // namespace periplus::kernels::cpu

#include "kernels/cpu/tiles.h"

namespace periplus::kernels::cpu {

TileKernels scalar_tile_kernels() noexcept { return kTileKernels; }

}  // namespace periplus::kernels::cpu
