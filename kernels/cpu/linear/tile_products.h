// Products of f32 matrices on bf16 tiles. Included by a level's source after a tile unit and before runs.h; f32_products.h is its twin.
//
// Operands are packed as the unit reads them, 16 rows or columns by 32 of the depth, when they are made: matrices after they are rounded
// to bf16, rows of bf16 tensors as they are.
#pragma once

#include "kernels/cpu/linear/squares.h"
#include "kernels/cpu/products.h"

namespace periplus::kernels::cpu {
namespace {

/// 16 pairs of rows of 32 columns.
struct PairedTile {
  Vec low[kTileRows], high[kTileRows];
};

class TileProducts {
 public:
  static constexpr std::int64_t kPad = 32;
  static constexpr std::int64_t kRowBlock = 32;
  static constexpr std::int64_t kLargestOperands = 6;
  static constexpr std::int64_t kPace = 12;  ///< Cache lines fetched at a beat.

  /// Rows of a head of a tensor, as many and as wide as the products need.
  struct Rows {
    const bfloat16* data;
    std::int64_t stride;

    /// Columns [column, column + 32) of row i.
    Vec pairs(std::int64_t i, std::int64_t column) const { return load_bits(data + i * stride + column); }
    friend Vec vector_at(const Rows& from, std::int64_t row, std::int64_t column) { return load(from.data + row * from.stride + column); }
  };
  /// The tensor itself where it has all of them, else a copy with zeros in `space`.
  static Rows rows(HeadRows<const bfloat16> from, const Extent& extent, Matrix space) {
    if (extent.rows == extent.padded_rows && extent.width == extent.padded_width) return {from.data, from.stride};
    auto* to = reinterpret_cast<bfloat16*>(space.data);
    const std::int64_t stride = 2 * space.stride;
    for (std::int64_t i = 0; i < extent.padded_rows; ++i) {
      for (std::int64_t column = 0; column < extent.padded_width; column += 32) {
        store_bits(to + i * stride + column, i < extent.rows ? load_pairs(from.data + i * from.stride, column, extent.width) : Vec{});
      }
    }
    return {to, stride};
  }

  /// [columns / 16][depth / 32] tiles.
  struct Right {
    bfloat16* tiles;
    std::int64_t steps;

    bfloat16* at(std::int64_t index, std::int64_t step) const { return tiles + (index * steps + step) * kTile; }
    std::int64_t next() const { return steps * kTile; }
  };
  /// The same of rows; or a tensor's rows, which lie as the unit reads them.
  struct Left {
    const bfloat16* tiles;
    std::int64_t next, next_step;  ///< From a tile to that of the next rows, and of the next 32 of the depth.
    std::int64_t row_bytes;

    Left(const Right& packed) : tiles(packed.tiles), next(packed.next()), next_step(kTile), row_bytes(64) {}
    Left(const Rows& rows) : tiles(rows.data), next(16 * rows.stride), next_step(32), row_bytes(2 * rows.stride) {}
    const bfloat16* at(std::int64_t index, std::int64_t step) const { return tiles + index * next + step * next_step; }
  };

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
      zip_rows(m, index, step, tile);
      transpose(tile);
    });
  }
  Right right(Matrix m, std::int64_t depth, std::int64_t columns) {
    return pack(columns, depth, [&](std::int64_t index, std::int64_t step, Vec(&tile)[16]) { zip_rows(m, index, step, tile); });
  }
  /// m is [columns][depth].
  Right right_transposed(Matrix m, std::int64_t depth, std::int64_t columns) {
    return pack(columns, depth, [&](std::int64_t index, std::int64_t step, Vec(&tile)[16]) {
      pair_columns(m, index, step, tile);
      transpose(tile);
    });
  }

  static Left left(const Rows& from, std::int64_t /*rows*/, std::int64_t /*depth*/) { return from; }
  Right right_transposed(const Rows& from, std::int64_t depth, std::int64_t columns) {
    return pack(columns, depth, [&](std::int64_t index, std::int64_t step, Vec(&tile)[16]) {
      for (std::int64_t i = 0; i < 16; ++i) tile[i] = from.pairs(index * 16 + i, step * 32);
      transpose(tile);
    });
  }
  /// From right_transposed() of the same rows: of its pairs of columns the first, or second, of 32 rows.
  Left left_transposed(const Rows& /*from*/, const Right& across, std::int64_t rows, std::int64_t depth) {
    return pack_twins(rows, depth, [&](std::int64_t column, std::int64_t step, PairedTile& tile) {
      const bfloat16 *low = across.at(2 * step, column / 32), *high = across.at(2 * step + 1, column / 32);
#pragma GCC unroll 16
      for (std::int64_t i = 0; i < 16; ++i) {
        const Words first = Words(load_bits(low + i * 32)), second = Words(load_bits(high + i * 32));
        Vec(&half)[16] = i < 8 ? tile.low : tile.high;
        half[2 * i % 16] = Vec(Unit::even_halves(first, second));
        half[2 * i % 16 + 1] = Vec(Unit::odd_halves(first, second));
      }
    });
  }
  Right right(const Rows& from, std::int64_t depth, std::int64_t columns) {
    return pack_twins(columns, depth,
                      [&](std::int64_t column, std::int64_t step, PairedTile& tile) { zip_rows(from, column, step, tile); });
  }

  /// Operands of rows or of a matrix, times factors, element by element.
  template <class Factors, class Source>
  Left left_scaled(const Factors& factors, const Source& from, std::int64_t rows, std::int64_t depth, Matrix /*space*/) {
    return pack(rows, depth, [&](std::int64_t index, std::int64_t step, Vec(&tile)[16]) {
      for (std::int64_t i = 0; i < 16; ++i) tile[i] = scaled_columns(factors, from, index * 16 + i, step * 32);
    });
  }
  template <class Factors, class Source>
  Left left_transposed_scaled(const Factors& factors, const Source& from, std::int64_t rows, std::int64_t depth, Matrix /*space*/) {
    return pack(rows, depth, [&](std::int64_t index, std::int64_t step, Vec(&tile)[16]) {
      for (std::int64_t i = 0; i < 16; ++i) tile[i] = scaled_rows(factors, from, step * 32 + 2 * i, index * 16);
      transpose(tile);
    });
  }
  template <class Factors, class Source>
  Right right_scaled(const Factors& factors, const Source& from, std::int64_t depth, std::int64_t columns, Matrix /*space*/) {
    return pack(columns, depth, [&](std::int64_t index, std::int64_t step, Vec(&tile)[16]) {
      for (std::int64_t i = 0; i < 16; ++i) tile[i] = scaled_rows(factors, from, step * 32 + 2 * i, index * 16);
    });
  }
  /// What rounding took from the matrix times factors when it was packed.
  template <class Factors>
  Right right_rest(const Factors& factors, Matrix m, const Right& packed, std::int64_t depth, std::int64_t columns) {
    return pack(columns, depth, [&](std::int64_t index, std::int64_t step, Vec(&tile)[16]) {
      for (std::int64_t i = 0; i < 16; ++i) {
        const std::int64_t row = step * 32 + 2 * i, column = index * 16;
        const Words rounded = Words(load_bits(packed.at(index, step) + i * 32));
        const Vec first = vector_at(m, row, column) * vector_at(factors, row, column) - Vec(rounded << 16);
        const Vec second = vector_at(m, row + 1, column) * vector_at(factors, row + 1, column) - Vec(rounded & 0xffff0000u);
        tile[i] = Vec(Unit::pair(first, second));
      }
    });
  }
  template <class Factors, class Source>
  Right right_transposed_scaled(const Factors& factors, const Source& from, std::int64_t depth, std::int64_t columns, Matrix /*space*/) {
    return pack(columns, depth, [&](std::int64_t index, std::int64_t step, Vec(&tile)[16]) {
      for (std::int64_t i = 0; i < 16; ++i) tile[i] = scaled_columns(factors, from, index * 16 + i, step * 32);
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
        const Operands on = operands_at(a, row, b, column, steps);
        const Matrix to = c.below(row - rows.begin).beside(column - columns.begin);
        const bool tall = rows.end - row > 16, wide = columns.end - column > 16;
        if (tall && wide) {
          squares_.template begin<Add>(on, to);
          continue;
        }
        squares_.flush();
        if (tall) {
          multiply_block<Add, 2, 1>(on, to);
        } else if (wide) {
          multiply_block<Add, 1, 2>(on, to);
        } else {
          multiply_block<Add, 1, 1>(on, to);
        }
      }
      pulse_.beat();
    }
    squares_.flush();
    Unit::fence();
  }

  /// take(c, row, column, rows, columns) for blocks of c = a[rows][depth] b[depth][columns] + lower[rows][rows] d[rows][columns], lower
  /// being a lower triangle.
  template <class Take>
  void multiply_both(const Left& a, const Right& b, std::int64_t depth, const Left& lower, const Right& d, std::int64_t rows,
                     std::int64_t columns, Matrix /*space*/, const Take& take) {
    for_each_square(
        rows, columns,
        [&](std::int64_t row, std::int64_t column, Matrix c) {
          squares_.template begin<false>(operands_at(a, row, b, column, {0, depth / 32}), c);
          Squares::accumulate(operands_at(lower, row, d, column, {0, row / 32 + 1}), 0);
        },
        [&](Matrix c, std::int64_t row, std::int64_t column) { take(c, row, column, 32, 32); });
  }

  /// state[rows][columns] = factor[row] * state + a[rows][depth] (b + rest)[depth][columns], and the operand right(state), if there is
  /// one. `factors` are `next` apart; null: 1. A rest without tiles is none.
  void advance(Matrix state, const float* factors, std::int64_t next, const Left& a, const Right& b, const Right& rest, std::int64_t rows,
               std::int64_t depth, std::int64_t columns, const Right* packed) {
    for_each_square(
        rows, columns,
        [&](std::int64_t row, std::int64_t column, Matrix c) {
          squares_.template begin<false>(operands_at(a, row, b, column, {0, depth / 32}), c);
          if (rest.tiles != nullptr) Squares::accumulate(operands_at(a, row, rest, column, {0, depth / 32}), 0);
        },
        [&](Matrix c, std::int64_t row, std::int64_t column) {
          merge_square(c, state.below(row).beside(column), factors == nullptr ? nullptr : factors + row * next, next,
                       packed == nullptr ? nullptr : packed->at(column / 16, row / 32), packed == nullptr ? 0 : packed->next());
        });
  }

 private:
  static Operands operands_at(const Left& a, std::int64_t row, const Right& b, std::int64_t column, Range steps) {
    return {a.at(row / 16, steps.begin), b.at(column / 16, steps.begin), a.next, b.next(), a.next_step, a.row_bytes, steps.size()};
  }

  /// begin(row, column, c) leaves a square of c in the accumulators, and use(c, row, column) gets it when the next one has begun: while
  /// the tile unit makes one, the vector unit uses the last.
  template <class Begin, class Use>
  [[gnu::always_inline]] void for_each_square(std::int64_t rows, std::int64_t columns, const Begin& begin, const Use& use) {
    alignas(64) float sums[2][32 * 32];
    std::int64_t count = 0, last_row = 0, last_column = 0;
    Unit::fence();
    for (std::int64_t column = 0; column < columns; column += 32) {
      for (std::int64_t row = 0; row < rows; row += 32) {
        begin(row, column, Matrix{sums[count % 2], 32});
        Unit::fence();
        if (count > 0) use(Matrix{sums[(count + 1) % 2], 32}, last_row, last_column);
        last_row = row;
        last_column = column;
        ++count;
        pulse_.beat();
      }
    }
    squares_.flush();
    Unit::fence();
    use(Matrix{sums[(count + 1) % 2], 32}, last_row, last_column);
    Unit::fence();
  }

  /// 32 columns of a row.
  template <class Factors, class Source>
  static Vec scaled_columns(const Factors& factors, const Source& from, std::int64_t row, std::int64_t column) {
    return Vec(Unit::narrow(vector_at(from, row, column) * vector_at(factors, row, column),
                            vector_at(from, row, column + 16) * vector_at(factors, row, column + 16)));
  }
  /// 16 columns of rows `row` and `row` + 1.
  template <class Factors, class Source>
  static Vec scaled_rows(const Factors& factors, const Source& from, std::int64_t row, std::int64_t column) {
    return Vec(Unit::pair(vector_at(from, row, column) * vector_at(factors, row, column),
                          vector_at(from, row + 1, column) * vector_at(factors, row + 1, column)));
  }
  /// Pairs of neighbouring rows: row i of `low` holds the first 16 columns of rows 2 i and 2 i + 1, of `high` the next 16.
  static void zip_rows(const Rows& from, std::int64_t column, std::int64_t step, PairedTile& tile) {
    for (std::int64_t i = 0; i < 16; ++i) {
      const std::int64_t row = step * 32 + 2 * i;
      const PairedRows zipped = pair_rows(from.pairs(row, column), from.pairs(row + 1, column));
      tile.low[i] = zipped.low;
      tile.high[i] = zipped.high;
    }
  }

  /// 32 x 32 of a state: state = factor * state + sums, and its tiles.
  static void merge_square(Matrix sums, Matrix state, const float* factors, std::int64_t next, bfloat16* packed, std::int64_t packed_next) {
    for (std::int64_t i = 0; i < 32; i += 2) {
      for (std::int64_t half = 0; half < 2; ++half) {
        Vec row[2];
        for (std::int64_t r = 0; r < 2; ++r) {
          float* at = state.row(i + r) + half * kLanes;
          row[r] = load(at) * (factors == nullptr ? 1.0f : factors[(i + r) * next]) + load(sums.row(i + r) + half * kLanes);
          store(at, row[r]);
        }
        if (packed != nullptr) store_bits(packed + half * packed_next + i * 16, Vec(Unit::pair(row[0], row[1])));
      }
    }
  }

  /// Tile (index, step) of 16 rows and 32 columns.
  static void pair_columns(Matrix m, std::int64_t index, std::int64_t step, Vec (&tile)[16]) {
    for (std::int64_t i = 0; i < 16; ++i) {
      const float* from = m.row(index * 16 + i) + step * 32;
      tile[i] = Vec(Unit::narrow(load(from), load(from + 16)));
    }
  }
  /// Of 32 rows and 16 columns: row i holds rows 2 i and 2 i + 1.
  static void zip_rows(Matrix m, std::int64_t index, std::int64_t step, Vec (&tile)[16]) {
    for (std::int64_t i = 0; i < 16; ++i) {
      const float* from = m.row(step * 32 + 2 * i) + index * 16;
      tile[i] = Vec(Unit::pair(load(from), load(from + m.stride)));
    }
  }

  Right take(std::int64_t rows, std::int64_t depth, bfloat16*& to) {
    to = reinterpret_cast<bfloat16*>(copies_ + used_);
    used_ += rows * depth / 2;
    if (used_ > floats_) __builtin_trap();
    return {to, depth / 32};
  }
  /// Two tiles at a time: of 32 neighbouring rows, or columns.
  template <class Read>
  [[gnu::always_inline]] Right pack_twins(std::int64_t rows, std::int64_t depth, const Read& read) {
    bfloat16* to;
    const Right operand = take(rows, depth, to);
    for (std::int64_t row = 0; row < rows; row += 32, to += operand.steps * kTile) {
      for (std::int64_t step = 0; step < operand.steps; ++step, to += kTile) {
        PairedTile tile;
        read(row, step, tile);
        for (std::int64_t i = 0; i < 16; ++i) {
          store_bits(to + i * 32, tile.low[i]);
          store_bits(to + operand.steps * kTile + i * 32, tile.high[i]);
        }
      }
    }
    return operand;
  }
  template <class Read>
  [[gnu::always_inline]] Right pack(std::int64_t rows, std::int64_t depth, const Read& read) {
    bfloat16* to;
    const Right operand = take(rows, depth, to);
    for (std::int64_t index = 0; index < rows / 16; ++index) {
      for (std::int64_t step = 0; step < operand.steps; ++step, to += kTile) {
        Vec tile[16];
        read(index, step, tile);
        for (std::int64_t i = 0; i < 16; ++i) store_bits(to + i * 32, tile[i]);
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

  /// One or two tiles.
  template <bool Add, int R, int N>
  static void multiply_block(const Operands& on, Matrix c) {
    static_assert(R + N < 4, "four tiles are a square");
    constexpr int kSecond = R == 2 ? 2 : 1;
    float* second = R == 2 ? c.row(16) : c.data + 16;
    begin<Add, 0>(c.data, c.stride);
    if constexpr (R + N == 3) begin<Add, kSecond>(second, c.stride);
    for (std::int64_t step = 0; step < on.steps; ++step) {
      Unit::load_rows<4>(on.a + step * on.a_step, on.a_row_bytes);
      Unit::load<6>(on.b + step * kTile);
      Unit::multiply<0, 4, 6>();
      if constexpr (N == 2) {
        Unit::load<7>(on.b + step * kTile + on.b_next);
        Unit::multiply<1, 4, 7>();
      }
      if constexpr (R == 2) {
        Unit::load_rows<5>(on.a + step * on.a_step + on.a_next, on.a_row_bytes);
        Unit::multiply<2, 5, 6>();
      }
    }
    Unit::store_rows<0>(c.data, c.stride * 4);
    if constexpr (R + N == 3) Unit::store_rows<kSecond>(second, c.stride * 4);
  }

  float* copies_;
  std::int64_t floats_, used_ = 0;
  Squares squares_;
  Pulse pulse_;
  Unit::Session session_;
};

}  // namespace
}  // namespace periplus::kernels::cpu
