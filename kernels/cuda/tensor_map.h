#pragma once

#include <string>

#include <cuda.h>

#include "kernels/cuda/attention.h"

/// Descriptors for the bulk tensor copy engine of capability 9.0.
namespace periplus::kernels::cuda {

/// What a descriptor of a [rows, heads, width] view says, checked on the host: coordinates are (column, row, head).
struct BoxPlan {
  const void* data;
  CUtensorMapDataType type;
  cuuint64_t extents[3];  ///< width, rows, heads
  cuuint64_t strides[2];  ///< of rows and heads, in bytes
  cuuint32_t box[3];      ///< columns, rows, 1
};

/// Whether two f32 of a row can be read and written at once.
inline bool pairs_aligned(const ConstTensorView& view) {
  return view.stride(0) % 2 == 0 && view.stride(1) % 2 == 0 && reinterpret_cast<std::uintptr_t>(view.bytes()) % 8 == 0;
}

/// Why the copy engine cannot read such a view, or empty: data and strides must be multiples of 16 bytes, extents at least 1.
std::string box_refusal(const ConstTensorView& view);
/// Boxes of 128 bytes' columns of `rows` rows of a head, with the 128-byte swizzle (the panels of hopper.cuh).
BoxPlan plan_boxes(const ConstTensorView& view, int rows);
/// Encodes it with the driver; throws DeviceError.
CUtensorMap encode(const BoxPlan& plan);

}  // namespace periplus::kernels::cuda
