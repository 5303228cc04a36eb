namespace periplus::kernels::cpu {
namespace {
constexpr int kLanes = 16;      // f32 in a vector
constexpr int kMaxVectors = 4;  // kMaxRows x kMaxVectors sums and kMaxVectors operands fit the registers
constexpr int kMaxRows = 6;
}  // namespace
}  // namespace periplus::kernels::cpu

#include "kernels/cpu/linear/f32_products.h"
// Order matters: runs use the products.
#include "kernels/cpu/linear/runs.h"

namespace periplus::kernels::cpu::linear {

KernelSet avx512_kernels() noexcept {
  return {kRunKernels<F32Products, float>, kRunKernels<F32Products, bfloat16>, kRunKernels<F32Products, float16>};
}

}  // namespace periplus::kernels::cpu::linear
