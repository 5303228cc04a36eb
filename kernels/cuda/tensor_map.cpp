#include "kernels/cuda/tensor_map.h"

#include <algorithm>

#include <cudaTypedefs.h>
#include <cuda_runtime.h>
#include <fmt/format.h>

#include "runtime/cuda/check.h"
#include "runtime/error.h"

namespace periplus::kernels::cuda {
namespace {

constexpr std::int64_t kAlignment = 16;

CUtensorMapDataType type_of(DType dtype) {
  switch (dtype) {
    case DType::bf16:
      return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case DType::f16:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    case DType::f32:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    default:
      throw InternalError("tensor map: no boxes of " + std::string(to_string(dtype)));
  }
}

/// The driver's function, found at run time: programs start without a driver.
PFN_cuTensorMapEncodeTiled_v12000 encoder() {
  static const auto function = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    periplus::cuda::check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result),
                          "cudaGetDriverEntryPointByVersion(cuTensorMapEncodeTiled)");
    if (result != cudaDriverEntryPointSuccess) throw DeviceError("the NVIDIA driver has no cuTensorMapEncodeTiled; install a newer one");
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(found);
  }();
  return function;
}

}  // namespace

std::string box_refusal(const ConstTensorView& view) {
  const auto size = static_cast<std::int64_t>(size_of(view.dtype()));
  if (view.elements() == 0) return "it is empty";
  if (reinterpret_cast<std::uintptr_t>(view.bytes()) % kAlignment != 0) return "its data is not aligned to 16 bytes";
  for (const int dim : {0, 1}) {
    const std::int64_t bytes = view.stride(dim) * size;
    if (view.size(dim) > 1 && (bytes % kAlignment != 0 || bytes <= 0)) {
      return fmt::format("its stride of {} bytes along dimension {} is no multiple of 16", bytes, dim);
    }
  }
  return {};
}

BoxPlan plan_boxes(const ConstTensorView& view, int rows) {
  const auto size = size_of(view.dtype());
  const auto extent = [&](int dim) { return static_cast<cuuint64_t>(view.size(dim)); };
  // The stride of a dimension of one is never used, but the encoder looks at it.
  const auto stride = [&](int dim) { return view.size(dim) > 1 ? static_cast<cuuint64_t>(view.stride(dim)) * size : kAlignment; };
  return {view.bytes(),
          type_of(view.dtype()),
          {extent(2), extent(0), extent(1)},
          {stride(0), stride(1)},
          {static_cast<cuuint32_t>(128 / size), static_cast<cuuint32_t>(rows), 1}};
}

CUtensorMap encode(const BoxPlan& plan) {
  CUtensorMap map{};
  const cuuint32_t element_strides[3] = {1, 1, 1};
  const CUresult status = encoder()(&map, plan.type, 3, const_cast<void*>(plan.data), plan.extents, plan.strides, plan.box, element_strides,
                                    CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                    CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw DeviceError(
        fmt::format("cuTensorMapEncodeTiled failed with code {} for extents {} x {} x {}, strides {} and {} bytes, box {} x {}",
                    static_cast<int>(status), plan.extents[0], plan.extents[1], plan.extents[2], plan.strides[0], plan.strides[1],
                    plan.box[0], plan.box[1]));
  }
  return map;
}

}  // namespace periplus::kernels::cuda
