#include "kernels/cpu/registers_256.h"
// Order matters: then the kernels.
#include "kernels/cpu/tiles.h"

namespace periplus::kernels::cpu {

TileKernels avx2_tile_kernels() noexcept { return kTileKernels; }

}  // namespace periplus::kernels::cpu
