#include "kernels/cpu/registers_128.h"
// Order matters: then the products.
#include "kernels/cpu/linear/f32_products.h"
// Then the runs.
#include "kernels/cpu/linear/runs.h"

namespace periplus::kernels::cpu::linear {

KernelSet<Kernels> scalar_kernels() noexcept { return kAllRunKernels<F32Products>; }

}  // namespace periplus::kernels::cpu::linear
