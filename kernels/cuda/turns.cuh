#pragma once

#include <cstdint>

/// Waiting for turns (schedule.h) in global memory.
namespace periplus::kernels::cuda {

/// What was stored before the value was released, by any multiprocessor, is seen by this thread afterwards, and by those that
/// it meets at a barrier.
__device__ __forceinline__ std::int32_t load_acquire(const std::int32_t* from) {
  std::int32_t value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
__device__ __forceinline__ void store_release(std::int32_t* to, std::int32_t value) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

}  // namespace periplus::kernels::cuda
