#pragma once

#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "kernels/attention_problem.h"
#include "runtime/cuda/check.h"
#include "runtime/tensor.h"

/// Views as what a kernel takes.
namespace periplus::kernels::cuda {

template <class T>
struct OnDevice {
  using type = T;
};
template <>
struct OnDevice<bfloat16> {
  using type = __nv_bfloat16;
};
template <>
struct OnDevice<float16> {
  using type = __half;
};
/// The toolkit's type of the same bits.
template <class T>
using DeviceValue = typename OnDevice<T>::type;

template <class S>
using AccumulatorOf = std::conditional_t<std::is_same_v<S, double>, double, float>;

/// Null for an empty view.
template <class T>
Strided<const DeviceValue<T>> strided(const ConstTensorView& view) {
  if (view.dims() == 0) return {nullptr, 0, 0};
  return {reinterpret_cast<const DeviceValue<T>*>(view.data<T>()), view.stride(0), view.stride(1)};
}
template <class T>
Strided<DeviceValue<T>> strided(const TensorView& view) {
  if (view.dims() == 0) return {nullptr, 0, 0};
  return {reinterpret_cast<DeviceValue<T>*>(view.data<T>()), view.stride(0), view.stride(1)};
}

template <class T>
__device__ __forceinline__ T* at(const Strided<T>& tensor, std::int64_t row, std::int64_t head) {
  return tensor.data + row * tensor.row + head * tensor.head;
}

template <class A>
constexpr A kEmpty = -std::numeric_limits<A>::infinity();

/// Sum over the lanes whose numbers differ below `lanes`, a power of two. All of them get the same bits.
template <class A>
__device__ __forceinline__ A sum_over_lanes(A value, int lanes = 32) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

/// Every row of every head starts at a multiple of `bytes`.
inline bool aligned(const ConstTensorView& view, std::size_t bytes) {
  const auto multiple = [&](std::int64_t elements) { return static_cast<std::size_t>(elements) * size_of(view.dtype()) % bytes == 0; };
  return reinterpret_cast<std::uintptr_t>(view.bytes()) % bytes == 0 && (view.size(0) <= 1 || multiple(view.stride(0))) &&
         (view.size(1) <= 1 || multiple(view.stride(1)));
}

/// The native stream. Makes its device current for the calling thread, as a launch needs.
inline cudaStream_t launch_stream(StreamView stream) {
  periplus::cuda::check(cudaSetDevice(stream.device().index), "cudaSetDevice");
  return static_cast<cudaStream_t>(stream.native());
}

}  // namespace periplus::kernels::cuda
