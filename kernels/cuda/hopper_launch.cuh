// What the host sides of the kernels for capability 9.0 share.
#pragma once

#include <algorithm>
#include <span>

#include <cuda_runtime.h>

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/rungs.h"
#include "kernels/cuda/tensor_map.h"
#include "runtime/cuda/check.h"
#include "runtime/cuda/device.h"

namespace periplus::kernels::cuda::hopper {

/// Whether type, head sizes and options suit, and the copy engine can read the views.
inline bool supports_block(const AttentionShape& shape, const AttentionBlock& block, std::span<const ConstTensorView> boxes) {
  if (block.q.dtype() != DType::bf16 && block.q.dtype() != DType::f16) return false;
  if (shape.width_qk > 128 || shape.width_v > 128 || shape.width_qk % 2 != 0 || shape.width_v % 2 != 0) return false;
  if (block.softcap != 0 || !(block.scale > 0)) return false;
  return std::ranges::all_of(boxes, [](const ConstTensorView& view) { return box_refusal(view).empty(); });
}

/// Calls launch.operator()<T, padded width>() for the type and head sizes of a supported call.
template <class Launch>
void with_tiles(const AttentionShape& shape, DType dtype, const Launch& launch) {
  const bool narrow = std::max(shape.width_qk, shape.width_v) <= 64;
  if (dtype == DType::bf16)
    return narrow ? launch.template operator()<__nv_bfloat16, 64>() : launch.template operator()<__nv_bfloat16, 128>();
  narrow ? launch.template operator()<__half, 64>() : launch.template operator()<__half, 128>();
}

inline Strided<const float> strided_f32(const ConstTensorView& view) { return {view.data<float>(), view.stride(0), view.stride(1)}; }
inline Strided<float> strided_f32(const TensorView& view) { return {view.data<float>(), view.stride(0), view.stride(1)}; }

/// One block on each multiprocessor that is not reserved, but no more than there are items; at least one.
template <class Tiles, class Shared, class Arguments>
void launch_persistent(void (*kernel)(Arguments), const char* name, const Arguments& arguments, StreamView stream) {
  constexpr int kBytes = sizeof(Shared);
  static_assert(kBytes <= 227 * 1024);
  periplus::cuda::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes), name);
  const int multiprocessors = periplus::cuda::known_properties(stream.device().index).multiprocessors - reserved_multiprocessors();
  const int blocks = std::clamp(multiprocessors, 1, std::max(1, arguments.order.items()));
  kernel<<<blocks, Tiles::kThreads, kBytes, static_cast<cudaStream_t>(stream.native())>>>(arguments);
  periplus::cuda::check(cudaGetLastError(), name);
}

}  // namespace periplus::kernels::cuda::hopper
