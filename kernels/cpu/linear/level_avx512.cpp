#include "kernels/cpu/registers_512.h"
// Order matters: then the products.
#include "kernels/cpu/linear/f32_products.h"
// Then the runs.
#include "kernels/cpu/linear/runs.h"

namespace periplus::kernels::cpu::linear {

KernelSet avx512_kernels() noexcept {
  return {kRunKernels<F32Products, float>, kRunKernels<F32Products, bfloat16>, kRunKernels<F32Products, float16>};
}

}  // namespace periplus::kernels::cpu::linear
