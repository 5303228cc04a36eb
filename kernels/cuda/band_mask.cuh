#pragma once

#include "kernels/cuda/schedule.h"

/// Which pairs of a score fragment the bands of a tile allow.
namespace periplus::kernels::cuda {

/// A row of up to 16 C fragments side by side, as one thread holds it: bit 2n + i stands for column 8n + i, counted from the
/// first that the thread holds. Here the bits of columns below `end`.
__device__ __forceinline__ std::uint32_t bits_below(int end) {
  const int count = end <= 0 ? 0 : min(2 * (end >> 3) + min(end & 7, 2), 32);
  return count >= 32 ? ~0u : (1u << count) - 1;
}

/// Those of the columns [begin, end), counted so.
__device__ __forceinline__ std::uint32_t bits_of(int begin, int end) { return bits_below(end) & ~bits_below(begin); }

/// The columns of the other axis that `band` allows to `row`, counted from `first` on.
template <RowAxis axis>
__device__ __forceinline__ std::uint32_t allowed_bits(const MaskBand& band, int row, int first) {
  if constexpr (axis == RowAxis::query) {
    if (row < band.q0 || row >= band.q1) return 0;
    return bits_of(max(band.k0, row + band.lo) - first, min(band.k1, row + band.hi + 1) - first);
  } else {
    if (row < band.k0 || row >= band.k1) return 0;
    return bits_of(max(band.q0, row - band.hi) - first, min(band.q1, row - band.lo + 1) - first);
  }
}
/// By any of `count` bands.
template <RowAxis axis>
__device__ __forceinline__ std::uint32_t allowed_bits(const MaskBand* bands, int count, int row, int first) {
  std::uint32_t bits = 0;
  for (int b = 0; b < count; ++b) bits |= allowed_bits<axis>(bands[b], row, first);
  return bits;
}
/// By any mask of a tile that lies nearer than its masks. It has one at least.
template <RowAxis axis>
__device__ __forceinline__ std::uint32_t allowed_bits(const ColumnTile& tile, const MaskBand* masks, int row, int first) {
  std::uint32_t bits = allowed_bits<axis>(tile.mask, row, first);
  for (int i = 1; i < tile.masks; ++i) bits |= allowed_bits<axis>(masks[tile.first_mask + i], row, first);
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
