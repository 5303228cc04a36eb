#include "kernels/cpu/registers_512.h"
// Order matters: then the unit.
#include "kernels/cpu/bf16/unit_emulated.h"
// Then what uses it.
#include "kernels/cpu/bf16/tiles.h"

namespace periplus::kernels::cpu::bf16 {

Kernels emulated_kernels() noexcept { return kKernels; }

}  // namespace periplus::kernels::cpu::bf16
