// How the persistent kernels of capability 9.0 find their work.
#pragma once

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/turns.cuh"
#include "kernels/cuda/work_items.cuh"

namespace periplus::kernels::cuda::hopper {

/// How many boxes have passed a ring of stages, a power of two: says which stage is next and the parity of its round.
template <int Stages>
struct Stage {
  unsigned count = 0;
  __device__ int index() const { return static_cast<int>(count % Stages); }
  __device__ int parity() const { return static_cast<int>(count / Stages % 2); }
  __device__ void next() { ++count; }
  __device__ Stage before() const { return {count - 1}; }
};

/// Takes the next item; -1 when there is none left.
__device__ inline int next_item(std::int32_t* counters, const WorkOrder& order) {
  const int number = take_number(counters);
  return number < order.items() ? number : -1;
}

}  // namespace periplus::kernels::cuda::hopper
