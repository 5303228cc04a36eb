// Products of f32 matrices on bf16 tiles. Included by a level's source after a tile unit and before runs.h; f32_products.h is its twin.
//
// Operands are rounded to bf16 and packed as the unit reads them, 16 rows or columns by 32 of the depth, when they are made. The depth
// of a tile is in the order 0, 16, 1, 17, ..: two vectors of f32 then make a vector of bf16 pairs without a shuffle, along either side
// of a matrix, and both operands have the same order.
#pragma once

#include "kernels/cpu/linear/rows.h"
#include "kernels/cpu/products.h"

namespace periplus::kernels::cpu {
namespace {

class TileProducts {
 public:
  static constexpr std::int64_t kPad = 32;
  static constexpr std::int64_t kRowBlock = 32;
  static constexpr std::int64_t kLargestOperands = 4;

  /// [rows / 16][depth / 32] tiles, or columns for rows.
  struct Operand {
    const bfloat16* tiles;
    std::int64_t steps;

    const bfloat16* at(std::int64_t index, std::int64_t step) const { return tiles + (index * steps + step) * kTile; }
  };
  using Left = Operand;
  using Right = Operand;

  TileProducts(float* copies, std::int64_t floats, const Progress& progress) : copies_(copies), floats_(floats), pulse_{progress} {}

  static std::int64_t floats(std::int64_t rows, std::int64_t columns) { return rows * columns / 2; }

  std::int64_t mark() const { return used_; }
  void release(std::int64_t mark) { used_ = mark; }
  Pulse& pulse() { return pulse_; }

  Left left(Matrix m, std::int64_t rows, std::int64_t depth) {
    return pack(rows, depth, [&](std::int64_t index, std::int64_t step, Vec(&tile)[16]) { pair_columns(m, index, step, tile); });
  }
  Left left_transposed(Matrix m, std::int64_t rows, std::int64_t depth) {
    return pack(rows, depth, [&](std::int64_t index, std::int64_t step, Vec(&tile)[16]) {
      pair_rows(m, index, step, tile);
      transpose(tile);
    });
  }
  Right right(Matrix m, std::int64_t depth, std::int64_t columns) {
    return pack(columns, depth, [&](std::int64_t index, std::int64_t step, Vec(&tile)[16]) { pair_rows(m, index, step, tile); });
  }
  /// m is [columns][depth].
  Right right_transposed(Matrix m, std::int64_t depth, std::int64_t columns) {
    return pack(columns, depth, [&](std::int64_t index, std::int64_t step, Vec(&tile)[16]) {
      pair_columns(m, index, step, tile);
      transpose(tile);
    });
  }

  /// c (Add ? += : =) a[rows][depth] b[depth][columns], c beginning with the first of the rows and columns. The depth is widened to
  /// whole tiles: one of the operands must have zeros there.
  template <bool Add>
  void multiply(const Left& a, Range rows, const Right& b, Range columns, Range depth, Matrix c) {
    Unit::fence();
    const Range steps{depth.begin / 32, (depth.end + 31) / 32};
    for (std::int64_t column = columns.begin; column < columns.end; column += 32) {
      for (std::int64_t row = rows.begin; row < rows.end; row += 32) {
        const Block block{a.at(row / 16, steps.begin),
                          b.at(column / 16, steps.begin),
                          a.steps * kTile,
                          b.steps * kTile,
                          steps.size(),
                          c.below(row - rows.begin).beside(column - columns.begin)};
        const bool tall = rows.end - row > 16, wide = columns.end - column > 16;
        if (tall && wide) {
          multiply_square<Add>(block);
          continue;
        }
        flush();
        if (tall) {
          multiply_block<Add, 2, 1>(block);
        } else if (wide) {
          multiply_block<Add, 1, 2>(block);
        } else {
          multiply_block<Add, 1, 1>(block);
        }
      }
      pulse_.beat();
    }
    flush();
    Unit::fence();
  }

 private:
  static constexpr std::int64_t kTile = 512;  ///< bf16 of a tile.

  /// Up to 2 x 2 tiles of a product.
  struct Block {
    const bfloat16 *a, *b;
    std::int64_t a_next, b_next;  ///< From one tile to that of the next rows or columns.
    std::int64_t steps;
    Matrix c;
  };

  /// Tile (index, step) of 16 rows and 32 columns: row i holds pairs of columns.
  static void pair_columns(Matrix m, std::int64_t index, std::int64_t step, Vec (&tile)[16]) {
    for (std::int64_t i = 0; i < 16; ++i) {
      const float* from = m.row(index * 16 + i) + step * 32;
      tile[i] = Vec(Unit::pair(load(from), load(from + 16)));
    }
  }
  /// Of 32 rows and 16 columns: row i holds rows i and i + 16.
  static void pair_rows(Matrix m, std::int64_t index, std::int64_t step, Vec (&tile)[16]) {
    for (std::int64_t i = 0; i < 16; ++i) {
      const float* from = m.row(step * 32 + i) + index * 16;
      tile[i] = Vec(Unit::pair(load(from), load(from + 16 * m.stride)));
    }
  }

  template <class Read>
  [[gnu::always_inline]] Operand pack(std::int64_t rows, std::int64_t depth, const Read& read) {
    auto* to = reinterpret_cast<bfloat16*>(copies_ + used_);
    const Operand operand{to, depth / 32};
    used_ += rows * depth / 2;
    if (used_ > floats_) __builtin_trap();
    for (std::int64_t index = 0; index < rows / 16; ++index) {
      for (std::int64_t step = 0; step < operand.steps; ++step, to += kTile) {
        Vec tile[16];
        read(index, step, tile);
        for (std::int64_t i = 0; i < 16; ++i) __builtin_memcpy(static_cast<void*>(to + i * 32), &tile[i], sizeof tile[i]);
      }
    }
    return operand;
  }

  template <bool Add, int T>
  [[gnu::always_inline]] static void begin(float* c, std::int64_t stride) {
    if constexpr (Add) {
      Unit::load_rows<T>(c, stride * 4);
    } else {
      Unit::zero<T>();
    }
  }

  /// Stores what the last square left in accumulator C, and begins the next there.
  template <bool Add, int C>
  [[gnu::always_inline]] void exchange(Matrix c) {
    constexpr std::int64_t kRow = C / 2 * 16, kColumn = C % 2 * 16;
    if (pending_.data != nullptr) Unit::store_rows<C>(pending_.row(kRow) + kColumn, pending_.stride * 4);
    begin<Add, C>(c.row(kRow) + kColumn, c.stride);
  }

  /// Two by two tiles. Sums can be stored only when the last product is through (52 cycles): so they stay until the next square has
  /// loaded its first operands, and leave one by one.
  template <bool Add>
  void multiply_square(const Block& on) {
    Unit::load<4>(on.a);
    Unit::load<6>(on.b);
    Unit::load<7>(on.b + on.b_next);
    Unit::load<5>(on.a + on.a_next);
    exchange<Add, 0>(on.c);
    Unit::multiply<0, 4, 6>();
    exchange<Add, 1>(on.c);
    Unit::multiply<1, 4, 7>();
    exchange<Add, 2>(on.c);
    Unit::multiply<2, 5, 6>();
    exchange<Add, 3>(on.c);
    Unit::multiply<3, 5, 7>();
    pending_ = on.c;
    for (std::int64_t step = 1; step < on.steps; ++step) {
      const bfloat16 *a = on.a + step * kTile, *b = on.b + step * kTile;
      Unit::load<4>(a);
      Unit::load<6>(b);
      Unit::multiply<0, 4, 6>();
      Unit::load<7>(b + on.b_next);
      Unit::multiply<1, 4, 7>();
      Unit::load<5>(a + on.a_next);
      Unit::multiply<2, 5, 6>();
      Unit::multiply<3, 5, 7>();
    }
  }
  void flush() {
    if (pending_.data == nullptr) return;
    Unit::store_rows<0>(pending_.data, pending_.stride * 4);
    Unit::store_rows<1>(pending_.data + 16, pending_.stride * 4);
    Unit::store_rows<2>(pending_.row(16), pending_.stride * 4);
    Unit::store_rows<3>(pending_.row(16) + 16, pending_.stride * 4);
    pending_ = {nullptr, 0};
  }

  /// One or two tiles.
  template <bool Add, int R, int N>
  static void multiply_block(const Block& on) {
    static_assert(R + N < 4, "four tiles are a square");
    constexpr int kSecond = R == 2 ? 2 : 1;
    float* second = R == 2 ? on.c.row(16) : on.c.data + 16;
    begin<Add, 0>(on.c.data, on.c.stride);
    if constexpr (R + N == 3) begin<Add, kSecond>(second, on.c.stride);
    for (std::int64_t step = 0; step < on.steps; ++step) {
      Unit::load<4>(on.a + step * kTile);
      Unit::load<6>(on.b + step * kTile);
      Unit::multiply<0, 4, 6>();
      if constexpr (N == 2) {
        Unit::load<7>(on.b + step * kTile + on.b_next);
        Unit::multiply<1, 4, 7>();
      }
      if constexpr (R == 2) {
        Unit::load<5>(on.a + step * kTile + on.a_next);
        Unit::multiply<2, 5, 6>();
      }
    }
    Unit::store_rows<0>(on.c.data, on.c.stride * 4);
    if constexpr (R + N == 3) Unit::store_rows<kSecond>(second, on.c.stride * 4);
  }

  float* copies_;
  std::int64_t floats_, used_ = 0;
  Matrix pending_ = {nullptr, 0};  ///< Where the sums of the last square belong.
  Pulse pulse_;
  Unit::Session session_;
};

}  // namespace
}  // namespace periplus::kernels::cpu
