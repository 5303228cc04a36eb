// Packed operands of the tile products. Included by tiles_<unit>.cpp after a unit.
//
// A tile product reads A as 16 rows of 32 bf16 along the summed index, and B as 16 rows that each hold, for 16 columns, two
// neighbours along the summed index. So
//   A from rows as they lie (keys for K Q^T):           copy 64 bytes of each of 16 rows;
//   B from rows, summed over the width (queries):       transpose 16 x 16 pairs;
//   A transposed, summed over rows (values for V^T P^T): pair neighbouring rows, then transpose 16 x 16 pairs.
// Rows and columns that do not exist are zeros. Every tile is contiguous: strided rows from the second-level cache cost a
// tenth of the speed. Two tiles lie side by side because a product step works on 2 x 2 tiles.
#pragma once

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

/// to: [steps][2 tiles of 16 pairs of columns x 16 rows] from 32 rows, of which `rows` exist.
inline void pack_rows_as_b(const bfloat16* from, std::int64_t stride, std::int64_t rows, std::int64_t width, std::int64_t steps,
                           bfloat16* to) {
  for (std::int64_t step = 0; step < steps; ++step) {
    for (std::int64_t half = 0; half < 2; ++half) {
      Vec block[kTileRows];
      for (std::int64_t i = 0; i < kTileRows; ++i) {
        const std::int64_t row = half * kTileRows + i;
        block[i] = row < rows ? load_pairs(from + row * stride, step * 32, width) : Vec{};
      }
      transpose(block);
      bfloat16* at = to + (step * 2 + half) * kTile;
      for (std::int64_t i = 0; i < kTileRows; ++i) store_bits(at + i * 32, block[i]);
    }
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

/// 16 pairs of neighbouring rows of 32 columns.
struct PairedTile {
  Vec low[kTileRows], high[kTileRows];
};

/// Rows [0, rows) of 32 at columns [column, column + 32); returns lanes with NaN or infinity.
template <bool Clean>
[[gnu::always_inline]] inline Ints load_paired(const bfloat16* from, std::int64_t stride, std::int64_t rows, std::int64_t width,
                                               std::int64_t column, PairedTile& tile, std::uint8_t* bad) {
  Ints any_bad = {};
  for (std::int64_t i = 0; i < kTileRows; ++i) {
    Vec row[2] = {};
    for (std::int64_t half = 0; half < 2 && 2 * i + half < rows; ++half) {
      row[half] = load_pairs(from + (2 * i + half) * stride, column, width);
      const Ints lanes = poison(row[half]);
      any_bad |= lanes;
      if constexpr (Clean) {
        if (any(lanes)) bad[2 * i + half] = 1;
        row[half] = without_poison(row[half]);
      }
    }
    const PairedRows zipped = pair_rows(row[0], row[1]);
    tile.low[i] = zipped.low;
    tile.high[i] = zipped.high;
  }
  return any_bad;
}

/// to: for each 32 columns, pair_stride apart, 2 tiles of 16 columns x 32 rows, of which `rows` exist. bad[row] becomes 1 for
/// rows with NaN or infinity, which are packed as 0. True if there are any.
inline bool pack_rows_transposed(const bfloat16* from, std::int64_t stride, std::int64_t rows, std::int64_t width,
                                 std::int64_t column_pairs, std::int64_t pair_stride, bfloat16* to, std::uint8_t* bad) {
  bool any_bad = false;
  for (std::int64_t pair = 0; pair < column_pairs; ++pair) {
    PairedTile tile;
    if (any(load_paired<false>(from, stride, rows, width, pair * 32, tile, bad))) {
      any_bad = true;
      load_paired<true>(from, stride, rows, width, pair * 32, tile, bad);
    }
    transpose(tile.low);
    transpose(tile.high);
    bfloat16* at = to + pair * pair_stride;
    for (std::int64_t i = 0; i < kTileRows; ++i) {
      store_bits(at + i * 32, tile.low[i]);
      store_bits(at + kTile + i * 32, tile.high[i]);
    }
  }
  return any_bad;
}

}  // namespace
}  // namespace periplus::kernels::cpu
