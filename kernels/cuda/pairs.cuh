#pragma once

#include "kernels/cuda/mma.cuh"

namespace periplus::kernels::cuda {

/// What a launch gave the block, a multiple of 128.
__device__ __forceinline__ unsigned char* dynamic_shared_memory() {
  extern __shared__ __align__(128) unsigned char memory_of_launch[];
  return memory_of_launch;
}

/// Two numbers in a word, the first in the lower half, as Numbers<T>::pack makes them.
template <class T>
struct Pairs;

template <>
struct Pairs<__nv_bfloat16> {
  static __device__ __forceinline__ float2 unpack(std::uint32_t both) {
    return {__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u)};
  }
  /// As afresh(): not kept in registers from one use to the next.
  static __device__ __forceinline__ std::uint32_t pack_afresh(float low, float high) {
    std::uint32_t both;
    asm volatile("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
  }
};

template <>
struct Pairs<__half> {
  static __device__ __forceinline__ float2 unpack(std::uint32_t both) {
    float2 pair;
    asm("{.reg .f16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high;}"
        : "=f"(pair.x), "=f"(pair.y)
        : "r"(both));
    return pair;
  }
  static __device__ __forceinline__ std::uint32_t pack_afresh(float low, float high) {
    std::uint32_t both;
    asm volatile("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
  }
};

}  // namespace periplus::kernels::cuda
