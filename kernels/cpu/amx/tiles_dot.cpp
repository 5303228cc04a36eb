namespace periplus::kernels::cpu {
namespace {
constexpr int kLanes = 16;  // f32 in a vector, and query rows in a tile
}  // namespace
}  // namespace periplus::kernels::cpu

#include "kernels/cpu/amx/unit_dot.h"
// Order matters: the tiles use the unit.
#include "kernels/cpu/amx/tiles.h"

namespace periplus::kernels::cpu::amx {

Kernels dot_kernels() noexcept { return kKernels; }

}  // namespace periplus::kernels::cpu::amx
