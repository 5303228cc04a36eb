namespace periplus::kernels::cpu {
namespace {
constexpr int kLanes = 16;      // f32 in a vector, and rows of a tile
constexpr int kMaxVectors = 4;  // of products without tiles, which are not used here
constexpr int kMaxRows = 6;
}  // namespace
}  // namespace periplus::kernels::cpu

#include "kernels/cpu/amx/unit_dot.h"
// Order matters: products use the unit, and runs the products.
#include "kernels/cpu/linear/tile_products.h"
// After them.
#include "kernels/cpu/linear/groups.h"
#include "kernels/cpu/linear/groups_backward.h"
// Last.
#include "kernels/cpu/linear/runs.h"

namespace periplus::kernels::cpu::linear {

Kernels<bfloat16> dot_kernels() noexcept { return kRunKernels<TileProducts, bfloat16>; }

}  // namespace periplus::kernels::cpu::linear
