#pragma once

#include "kernels/cuda/operands.cuh"
#include "kernels/cuda/rungs.h"
#include "kernels/cuda/softmax.cuh"
#include "kernels/cuda/work_items.cuh"

/// What the host sides of the portable kernels share.
namespace periplus::kernels::cuda::portable {

inline constexpr int kWidest = 256;

/// Head widths are padded with zeros to one of these.
inline constexpr int kWidths[] = {64, 96, 128, 192, 256};

/// Scores are compared before they are scaled, which a scale of zero or less would turn round.
inline bool supports(const AttentionShape& shape, const AttentionBlock& block) {
  const bool half = block.q.dtype() == DType::bf16 || block.q.dtype() == DType::f16;
  const auto fits = [](std::int64_t width) { return width % 8 == 0 && width <= kWidest; };
  // Offsets within a tile, of at most 128 rows, are 32 bits wide.
  const auto copies = [](const ConstTensorView& view) { return aligned(view, 16) && std::abs(view.stride(0)) < (1 << 23); };
  return half && fits(shape.width_qk) && fits(shape.width_v) && block.scale > 0 && copies(block.q) && copies(block.k) && copies(block.v);
}

/// How products of queries and keys become scores in units of log2: times `factor`, or with a cap outer tanh(inner x). Kernels
/// get it ready: a division in double precision is a call, around which registers spill.
struct Scaling {
  float factor, inner, outer;  ///< outer 0: no cap
};
inline Scaling scaling_of(const AttentionBlock& block) {
  if (block.softcap > 0) return {1, static_cast<float>(block.scale / block.softcap), static_cast<float>(block.softcap) * kLog2E};
  return {static_cast<float>(block.scale) * kLog2E, 0, 0};
}

inline int attribute(cudaDeviceAttr which, StreamView stream) {
  int value = 0;
  periplus::cuda::check(cudaDeviceGetAttribute(&value, which, stream.device().index), "cudaDeviceGetAttribute");
  return value;
}

/// launch.template operator()<T, width>() for the storage type of `q` and the padded width.
template <class Launch>
void for_type_and_width(const ConstTensorView& q, const AttentionShape& shape, std::string_view operation, const Launch& launch) {
  const std::int64_t width = std::max(shape.width_qk, shape.width_v);
  visit_dtype<bfloat16, float16>(q.dtype(), operation, [&]<class T>() {
    if (width <= 64) return launch.template operator()<T, 64>();
    if (width <= 96) return launch.template operator()<T, 96>();
    if (width <= 128) return launch.template operator()<T, 128>();
    if (width <= 192) return launch.template operator()<T, 192>();
    return launch.template operator()<T, 256>();
  });
}

/// As many blocks as the multiprocessors that are not reserved hold at a time, and no more than `useful`.
template <class... Parameters, class... Arguments>
void launch_persistent(void (*kernel)(Parameters...), int threads, int shared_bytes, int useful, StreamView stream,
                       const Arguments&... arguments) {
  using periplus::cuda::check;
  if (useful == 0) return;
  const cudaStream_t native = launch_stream(stream);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), "cudaFuncSetAttribute");
  int resident = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads, static_cast<std::size_t>(shared_bytes)),
        "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  const int multiprocessors = std::max(1, attribute(cudaDevAttrMultiProcessorCount, stream) - reserved_multiprocessors());
  const int blocks = std::min(useful, multiprocessors * std::max(resident, 1));
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), static_cast<std::size_t>(shared_bytes), native>>>(arguments...);
  check(cudaGetLastError(), "launch of portable attention");
}

}  // namespace periplus::kernels::cuda::portable
