// Packed operands of the tile products. Included by level_<unit>.cpp after a unit.
//
// A tile product reads A as 16 rows of 32 bf16 along the summed index, and B as 16 rows that each hold, for 16 columns, two
// neighbours along the summed index. So
//   A from rows as they lie (keys for K Q^T):           copy 64 bytes of each of 16 rows;
//   B from rows, summed over the width (queries):       transpose 16 x 16 pairs;
//   A transposed, summed over rows (values for V^T P^T): pair neighbouring rows, then transpose 16 x 16 pairs.
// Rows and columns that do not exist are zeros. Every tile is contiguous: strided rows from the second-level cache cost a
// tenth of the speed. Two tiles lie side by side because a product step works on 2 x 2 tiles.
#pragma once

#include <cstddef>

#include "kernels/cpu/lanes.h"

namespace periplus::kernels::cpu {
namespace {

constexpr std::int64_t kTile = 512;     // bf16 of a tile
constexpr std::int64_t kTileRows = 16;  // its rows

inline Vec load_bits(const void* from) {
  Vec bits;
  __builtin_memcpy(&bits, from, sizeof bits);
  return bits;
}
inline void store_bits(void* to, Vec bits) { __builtin_memcpy(to, &bits, sizeof bits); }

/// 32 bf16 of a row from column `column` on, zeros past `width`.
inline Vec load_pairs(const bfloat16* row, std::int64_t column, std::int64_t width) {
  if (column + 32 <= width) return load_bits(row + column);
  Vec bits = {};
  if (column < width) __builtin_memcpy(&bits, row + column, static_cast<std::size_t>(width - column) * sizeof(bfloat16));
  return bits;
}

/// to: [steps][2 tiles of 16 rows x 32 columns] from 32 rows, of which `rows` exist.
inline void pack_rows_as_a(const bfloat16* from, std::int64_t stride, std::int64_t rows, std::int64_t width, std::int64_t steps,
                           bfloat16* to) {
  for (std::int64_t row = 0; row < 2 * kTileRows; ++row) {
    bfloat16* at = to + row / kTileRows * kTile + row % kTileRows * 32;
    for (std::int64_t step = 0; step < steps; ++step) {
      store_bits(at + step * 2 * kTile, row < rows ? load_pairs(from + row * stride, step * 32, width) : Vec{});
    }
  }
}

/// A corner of a matrix to be read column by column, or a copy that has zeros for rows and columns that do not exist. Also a copy where
/// rows are so far apart that their lines share few sets of the first-level cache and would not stay until the next columns.
template <class T, std::int64_t kRows, std::int64_t kColumns>
class Corner {
  static constexpr std::size_t kRowBytes = kColumns * sizeof(T);
  static constexpr std::int64_t kFar = 65536 / kRows;  // 8 lines in each set that rows share, of 64 sets

 public:
  [[gnu::always_inline]] Corner(const T* from, std::int64_t stride, std::int64_t rows, std::int64_t width) : data_(from), stride_(stride) {
    const bool whole = rows >= kRows && width >= kColumns;
    if (whole && row_bytes() % kFar != 0) return;
    if (whole) {
      for (std::int64_t row = 0; row < kRows; ++row) __builtin_memcpy(space_ + row * kRowBytes, from + row * stride, kRowBytes);
    } else {
      copy_some(smaller(rows, kRows), smaller(width, kColumns));
    }
    data_ = reinterpret_cast<const T*>(space_);
    stride_ = kColumns;
  }
  const T* data(std::int64_t column = 0) const { return data_ + column; }
  std::int64_t row_bytes() const { return stride_ * std::int64_t{sizeof(T)}; }

 private:
  [[gnu::noinline]] void copy_some(std::int64_t rows, std::int64_t width) {
    __builtin_memset(space_, 0, sizeof space_);
    for (std::int64_t row = 0; row < rows; ++row) {
      __builtin_memcpy(space_ + static_cast<std::size_t>(row) * kRowBytes, data_ + row * stride_,
                       static_cast<std::size_t>(width) * sizeof(T));
    }
  }

  const T* data_;
  std::int64_t stride_;
  alignas(64) std::byte space_[kRows * kRowBytes];
};

/// to: [steps][2 tiles of 16 pairs of columns x 16 rows] from 32 rows, of which `rows` exist.
inline void pack_rows_as_b(const bfloat16* from, std::int64_t stride, std::int64_t rows, std::int64_t width, std::int64_t steps,
                           bfloat16* to) {
  for (std::int64_t i = 0; i < 2 * steps; ++i) {
    const std::int64_t row = i % 2 * kTileRows, column = i / 2 * 32;
    const Corner<bfloat16, 16, 32> corner(from + row * stride + column, stride, larger(0, rows - row), larger(0, width - column));
    Vec block[kTileRows];
    Unit::transpose_words(corner.data(), corner.row_bytes(), block);
    for (std::int64_t n = 0; n < kTileRows; ++n) store_bits(to + i * kTile + n * 32, block[n]);
  }
}

/// Pairs of rows: lane n of `low` holds (upper[n], lower[n]) of the first 16 columns, of `high` those of the next 16.
struct PairedRows {
  Vec low, high;
};
inline PairedRows pair_rows(Vec first, Vec second) {
  using Brains = std::uint16_t __attribute__((vector_size(64)));
  const auto zip = [&]<int... I>(std::integer_sequence<int, I...>) {
    const Brains a = Brains(first), b = Brains(second);
    return PairedRows{Vec(__builtin_shufflevector(a, b, (I / 2 + I % 2 * 32)...)),
                      Vec(__builtin_shufflevector(a, b, (16 + I / 2 + I % 2 * 32)...))};
  };
  return zip(std::make_integer_sequence<int, 32>{});
}

/// Lanes where one of the two bf16 is NaN or infinite.
inline Ints poison(Vec pairs) {
  const Words bits = Words(pairs), exponent = Words{} + 0x7f80u;
  return (((bits >> 16) & exponent) == exponent) | ((bits & exponent) == exponent);
}
inline Vec without_poison(Vec pairs) {
  const Words bits = Words(pairs), exponent = Words{} + 0x7f80u, none = {};
  const Words low = bits & 0xffffu, high = bits >> 16;
  return Vec(((low & exponent) == exponent ? none : low) | (((high & exponent) == exponent ? none : high) << 16));
}

/// Marks the rows that have NaN or infinity in 32 columns.
inline void mark_poison(const Corner<bfloat16, 32, 32>& corner, std::uint8_t* bad) {
  for (std::int64_t row = 0; row < 32; ++row) {
    if (any(poison(load_bits(corner.data() + row * corner.row_bytes() / 2)))) bad[row] = 1;
  }
}

/// to: for each 32 columns, pair_stride apart, 2 tiles of 16 columns x 32 rows, of which `rows` exist. bad[row] becomes 1 for
/// rows with NaN or infinity, which are packed as 0. True if there are any.
inline bool pack_rows_transposed(const bfloat16* from, std::int64_t stride, std::int64_t rows, std::int64_t width,
                                 std::int64_t column_pairs, std::int64_t pair_stride, bfloat16* to, std::uint8_t* bad) {
  using Brains = std::uint16_t __attribute__((vector_size(64)));
  bool any_bad = false;
  for (std::int64_t pair = 0; pair < column_pairs; ++pair) {
    const Corner<bfloat16, 32, 32> corner(from + pair * 32, stride, rows, larger(0, width - pair * 32));
    Brains most = {};  // of the magnitudes
    for (std::int64_t column = 0; column < 32; column += 8) {
      Vec columns[8];
      Unit::transpose_halves(corner.data(column), corner.row_bytes(), columns);
      for (std::int64_t c = 0; c < 8; ++c) {
        const Brains magnitude = Brains(columns[c]) & 0x7fff;
        most = magnitude > most ? magnitude : most;
        store_bits(to + pair * pair_stride + (column + c) * 32, columns[c]);
      }
    }
    if (!any(Ints(most >= 0x7f80))) continue;
    any_bad = true;
    mark_poison(corner, bad);
    for (std::int64_t c = 0; c < 32; ++c) {
      bfloat16* at = to + pair * pair_stride + c * 32;
      store_bits(at, without_poison(load_bits(at)));
    }
  }
  return any_bad;
}

}  // namespace
}  // namespace periplus::kernels::cpu
