#pragma once

/// The special function unit's powers and logarithms.
namespace periplus::kernels::cuda {

/// 2^x; 2^-inf is 0. The instruction's error is 2 units in the last place.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
/// To about 2^-22 absolute; -inf of 0.
__device__ __forceinline__ float log2_fast(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace periplus::kernels::cuda
