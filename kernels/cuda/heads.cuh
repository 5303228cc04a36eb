#pragma once
// What operations per token and head share: a warp takes the channels of a head.

#include "kernels/cuda/transformer.cuh"

namespace periplus::kernels::cuda {

constexpr int kHeadThreads = 256;

/// body(row, head, lane) of all lanes of a warp together.
template <class Body>
__global__ void __launch_bounds__(kHeadThreads) for_each_head(std::int64_t rows, std::int64_t heads, const Body body) {
  constexpr int kWarps = kHeadThreads / 32;
  const std::int64_t first = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32, step = std::int64_t{gridDim.x} * kWarps;
  for (std::int64_t item = first; item < rows * heads; item += step) body(item / heads, item % heads, threadIdx.x % 32);
}

template <class Body>
void launch_heads(std::int64_t rows, std::int64_t heads, const Body& body, cudaStream_t stream) {
  constexpr int kWarps = kHeadThreads / 32;
  if (rows * heads == 0) return;
  launch("launch of a kernel by head", for_each_head<Body>, blocks_for((rows * heads + kWarps - 1) / kWarps), kHeadThreads, 0, stream, rows,
         heads, body);
}

template <class T>
using Reads = Strided<const DeviceValue<T>>;
template <class T>
using Writes = Strided<DeviceValue<T>>;

/// visit(channel) of those that the lane has.
template <class Visit>
__device__ __forceinline__ void for_each_channel(std::int64_t width, unsigned lane, const Visit& visit) {
  for (std::int64_t i = lane; i < width; i += 32) visit(i);
}

template <class A, class T>
__device__ __forceinline__ A product(const T* a, const T* b, std::int64_t width, unsigned lane) {
  A sum = 0;
  for_each_channel(width, lane, [&](std::int64_t i) { sum += static_cast<A>(a[i]) * static_cast<A>(b[i]); });
  return sum_over_lanes(sum);
}

}  // namespace periplus::kernels::cuda
