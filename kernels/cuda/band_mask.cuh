#pragma once

#include "kernels/cuda/schedule.h"

/// Which pairs of a score fragment the bands of a tile allow.
namespace periplus::kernels::cuda {

struct ColumnRange {
  int begin, end;  ///< begin >= end: none
};

/// The columns of the other axis that `band` allows to `row`.
template <RowAxis axis>
__device__ __forceinline__ ColumnRange columns_of(const MaskBand& band, int row) {
  if constexpr (axis == RowAxis::query) {
    if (row < band.q0 || row >= band.q1) return {0, 0};
    return {max(band.k0, row + band.lo), min(band.k1, row + band.hi + 1)};
  } else {
    if (row < band.k0 || row >= band.k1) return {0, 0};
    return {max(band.q0, row - band.hi), min(band.q1, row - band.lo + 1)};
  }
}

/// A row of up to 16 C fragments side by side, as one thread holds it: bit 2n + i stands for column 8n + i, counted from the
/// first that the thread holds. Here the bits of columns below `end`.
__device__ __forceinline__ std::uint32_t bits_below(int end) {
  const int count = max(2 * (end >> 3) + min(end & 7, 2), 0);
  return count >= 32 ? ~0u : (1u << count) - 1;
}

/// Columns are counted from `first` on.
template <RowAxis axis>
__device__ __forceinline__ std::uint32_t allowed_bits(const MaskBand* bands, int count, int row, int first) {
  std::uint32_t bits = 0;
  for (int b = 0; b < count; ++b) {
    const ColumnRange range = columns_of<axis>(bands[b], row);
    bits |= bits_below(range.end - first) & ~bits_below(range.begin - first);
  }
  return bits;
}

/// Bit 2n + i of the result: bit 8n + i of the columns' marks, counted from `first`, which is below 8.
template <int fragments>
__device__ __forceinline__ std::uint32_t marked_bits(const std::uint32_t* marks, int first) {
  std::uint32_t bits = 0;
#pragma unroll
  for (int n = 0; n < fragments; ++n) bits |= (marks[n / 4] >> (8 * (n % 4) + first) & 3u) << (2 * n);
  return bits;
}

}  // namespace periplus::kernels::cuda
