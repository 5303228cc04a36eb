#include "kernels/cpu/registers_512.h"
// Order matters: then the kernels.
#include "kernels/cpu/tiles.h"

namespace periplus::kernels::cpu {

TileKernels avx512_tile_kernels() noexcept { return kTileKernels; }

}  // namespace periplus::kernels::cpu
