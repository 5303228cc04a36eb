#include "kernels/cpu/registers_512.h"
// Order matters: then the kernels.
#include "kernels/cpu/tiles.h"

namespace periplus::kernels::cpu {

KernelSet<TileKernels> avx512_tile_kernels() noexcept { return kAllTileKernels; }

}  // namespace periplus::kernels::cpu
