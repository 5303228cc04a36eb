#include "kernels/cpu/registers_512.h"
// Order matters: then the unit.
#include "kernels/cpu/bf16/unit_amx.h"
// Then the products.
#include "kernels/cpu/linear/tile_products.h"
// Then groups of chunks.
#include "kernels/cpu/linear/groups.h"
#include "kernels/cpu/linear/groups_backward.h"
// Then the runs.
#include "kernels/cpu/linear/runs.h"

namespace periplus::kernels::cpu::linear {

Kernels<bfloat16> amx_kernels() noexcept { return kRunKernels<TileProducts, bfloat16>; }

}  // namespace periplus::kernels::cpu::linear
