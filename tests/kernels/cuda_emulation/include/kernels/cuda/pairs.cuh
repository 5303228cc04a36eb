#pragma once
// Stands for kernels/cuda/pairs.cuh.

#include "kernels/cuda/mma.cuh"

namespace periplus::kernels::cuda {

inline unsigned char* dynamic_shared_memory() { return emulation::shared_memory(); }

template <class T>
struct Pairs {
  static float2 unpack(std::uint32_t both) { return {Numbers<T>::number(both, 0), Numbers<T>::number(both, 1)}; }
  static std::uint32_t pack_afresh(float low, float high) { return Numbers<T>::pack(low, high); }
};

}  // namespace periplus::kernels::cuda
