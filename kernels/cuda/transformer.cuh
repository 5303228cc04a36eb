#pragma once
// What the token-parallel parts share on a device. Every sum has one order, given by the shape: strides of a block's threads,
// lanes of a warp as a tree, warps in turn. No atomics.

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "kernels/cuda/operands.cuh"
#include "kernels/cuda/scratch.cuh"
#include "kernels/cuda/several.cuh"

namespace periplus::kernels::cuda {

template <class T>
const DeviceValue<T>* device_data(const ConstTensorView& view) {
  return reinterpret_cast<const DeviceValue<T>*>(view.data<T>());
}
template <class T>
DeviceValue<T>* device_data(const TensorView& view) {
  return reinterpret_cast<DeviceValue<T>*>(view.data<T>());
}

/// Elements of T in an access of 16 bytes.
template <class T>
constexpr int kPerAccess = 16 / static_cast<int>(sizeof(T));

/// Whether every `count` elements of dense views, from their starts, can be one access.
inline bool starts_aligned(int count, std::initializer_list<ConstTensorView> views) {
  return std::ranges::all_of(views, [&](const ConstTensorView& view) {
    return reinterpret_cast<std::uintptr_t>(view.bytes()) % std::min<std::size_t>(16, count * size_of(view.dtype())) == 0;
  });
}

/// launch(element count of an access as a constant): `most`, or 1 where that does not fit.
template <int most, class Launch>
void with_access(bool wide, const Launch& launch) {
  if (wide) {
    launch(std::integral_constant<int, most>{});
  } else {
    launch(std::integral_constant<int, 1>{});
  }
}

struct Sum {
  template <class A>
  __device__ A operator()(A a, A b) const {
    return a + b;
  }
};
struct Largest {
  template <class A>
  __device__ A operator()(A a, A b) const {
    return fmax(a, b);
  }
};

/// For all threads of a block of whole warps; all of them get the same bits.
template <class Operation, class A>
__device__ A over_block(A value, Operation operation) {
  __shared__ A of_warp[32];
  for (int offset = 16; offset > 0; offset /= 2) value = operation(value, __shfl_xor_sync(0xffffffffu, value, offset));
  __syncthreads();  // an earlier call's results have been read
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  A result = of_warp[0];
  for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) result = operation(result, of_warp[warp]);
  return result;
}

/// The first columns of every access to a row by this thread of its block.
template <int count, class Visit>
__device__ __forceinline__ void for_each_column(std::int64_t columns, const Visit& visit) {
  for (std::int64_t column = threadIdx.x * count; column < columns; column += blockDim.x * count) visit(column);
}

/// Threads of a block for a row: whole warps.
inline unsigned row_threads(std::int64_t columns, int count) {
  constexpr std::int64_t kMostThreads = 512;
  return static_cast<unsigned>(std::clamp<std::int64_t>((columns + count - 1) / count, 1, kMostThreads) + 31) / 32 * 32;
}

/// Blocks for items that a kernel strides over.
inline unsigned blocks_for(std::int64_t items) {
  constexpr std::int64_t kMostBlocks = 1 << 20;
  return static_cast<unsigned>(std::min(items, kMostBlocks));
}

constexpr int kElementThreads = 256;

/// body.apply<n>(first) for accesses of `count` elements, then for the rest one by one.
template <int count, class Body>
__global__ void __launch_bounds__(kElementThreads) for_each_element(std::int64_t elements, const Body body) {
  const std::int64_t thread = std::int64_t{blockIdx.x} * kElementThreads + threadIdx.x, step = std::int64_t{gridDim.x} * kElementThreads;
  const std::int64_t whole = elements / count * count;
  for (std::int64_t at = thread * count; at < whole; at += step * count) body.template apply<count>(at);
  if (whole + thread < elements) body.template apply<1>(whole + thread);
}

template <int most, class Body>
void launch_elements(std::int64_t elements, bool wide, const Body& body, cudaStream_t stream) {
  if (elements == 0) return;
  with_access<most>(wide, [&]<int count>(std::integral_constant<int, count>) {
    constexpr std::int64_t kPerBlock = std::int64_t{kElementThreads} * count;
    for_each_element<count><<<blocks_for((elements + kPerBlock - 1) / kPerBlock), kElementThreads, 0, stream>>>(elements, body);
  });
  periplus::cuda::check(cudaGetLastError(), "launch of an elementwise kernel");
}

/// By one block.
template <class A>
__global__ void __launch_bounds__(1024) sum_of_values(std::int64_t count, const A* values, A* result) {
  A sum = 0;
  for (std::int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += values[i];
  sum = over_block(sum, Sum{});
  if (threadIdx.x == 0) *result = sum;
}

/// Waits for the stream.
template <class A>
A sum_on_host(std::int64_t count, const A* values, cudaStream_t stream) {
  const Scratch<A> there(1, stream);
  sum_of_values<<<1, 1024, 0, stream>>>(count, values, there.data());
  periplus::cuda::check(cudaGetLastError(), "launch of a sum");
  A here = 0;
  periplus::cuda::check(cudaMemcpyAsync(&here, there.data(), sizeof(A), cudaMemcpyDeviceToHost, stream), "cudaMemcpyAsync of a sum");
  periplus::cuda::check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  return here;
}

}  // namespace periplus::kernels::cuda
