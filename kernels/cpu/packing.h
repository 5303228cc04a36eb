// Operands to and from f32 tiles, part of tiles.h.
#pragma once

#include "kernels/cpu/lanes.h"
#include "kernels/cpu/tile_kernels.h"

namespace periplus::kernels::cpu {
namespace {

/// to[row][i] = from[row][i] in f32, columns padded with zeros to whole vectors. False if an element is NaN or infinite.
template <class S>
bool pack_rows(const S* from, std::int64_t row_stride, std::int64_t rows, std::int64_t width, float* to, std::int64_t to_stride) {
  Vec found = {};  // 0 * x is 0 for every number
  for (std::int64_t row = 0; row < rows; ++row) {
    Vec in_row = {};
    for (std::int64_t i = 0; i < width; i += kLanes) {
      const Vec x = load_some(from + row * row_stride + i, width - i);
      store(to + row * to_stride + i, x);
      in_row += x * 0.0f;
    }
    found += in_row;
  }
  return !any(found != Vec{});
}

/// to[i][row] = factor * from[row][i] in f32, rows padded with zeros to whole vectors.
template <class S>
void pack_transposed(const S* from, std::int64_t row_stride, std::int64_t rows, std::int64_t width, float factor, float* to,
                     std::int64_t to_stride) {
  for (std::int64_t row = 0; row < rows; row += kLanes) {
    for (std::int64_t i = 0; i < width; i += kLanes) {
      Vec block[kLanes];
      for (std::int64_t r = 0; r < kLanes; ++r) {
        block[r] = row + r < rows ? load_some(from + (row + r) * row_stride + i, width - i) * factor : Vec{};
      }
      transpose(block);
      for (std::int64_t c = 0; c < smaller(kLanes, width - i); ++c) store(to + (i + c) * to_stride + row, block[c]);
    }
  }
}

/// to[row][i] = (add ? to : 0) + factor[row] * from[i][row].
inline void unpack_transposed(const float* from, std::int64_t from_stride, std::int64_t rows, std::int64_t width, const float* factor,
                              bool add, float* to, std::int64_t row_stride) {
  for (std::int64_t row = 0; row < rows; row += kLanes) {
    for (std::int64_t i = 0; i < width; i += kLanes) {
      Vec block[kLanes];
      for (std::int64_t c = 0; c < kLanes; ++c) block[c] = i + c < width ? load(from + (i + c) * from_stride + row) : Vec{};
      transpose(block);
      for (std::int64_t r = 0; r < smaller(kLanes, rows - row); ++r) {
        float* at = to + (row + r) * row_stride + i;
        const Vec scaled = block[r] * factor[row + r];
        store_some(at, add ? load_some(at, width - i) + scaled : scaled, width - i);
      }
    }
  }
}

}  // namespace
}  // namespace periplus::kernels::cpu
