#include "kernels/cpu/registers_128.h"
// Order matters: then the kernels.
#include "kernels/cpu/tiles.h"

namespace periplus::kernels::cpu {

TileKernels scalar_tile_kernels() noexcept { return kTileKernels; }

}  // namespace periplus::kernels::cpu
