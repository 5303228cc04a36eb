#include "kernels/cpu/registers_128.h"
// Order matters: then the kernels.
#include "kernels/cpu/tiles.h"

namespace periplus::kernels::cpu {

KernelSet<TileKernels> scalar_tile_kernels() noexcept { return kAllTileKernels; }

}  // namespace periplus::kernels::cpu
