// Products of f32 matrices on multiply-adds. Included by a level's source before runs.h; tile_products.h is its twin, on bf16 tiles.
#pragma once

#include "kernels/cpu/linear/rows.h"
#include "kernels/cpu/packing.h"
#include "kernels/cpu/products.h"

namespace periplus::kernels::cpu {
namespace {

/// C = A B, in which an operand may be a matrix or its transpose. Only right operands that are transposes are copied here.
class F32Products {
 public:
  static constexpr std::int64_t kPad = 16;             ///< Widths and rows of matrices are multiples.
  static constexpr std::int64_t kRowBlock = 16;        ///< Rows of a triangle that are computed together.
  static constexpr std::int64_t kLargestOperands = 2;  ///< As large as the largest, alive at once.

  static constexpr std::int64_t kPace = 16;  ///< Cache lines fetched at a beat.

  /// Rows of a head of a tensor, in f32.
  using Rows = Matrix;
  template <class S>
  static Rows rows(HeadRows<const S> from, const Extent& extent, Matrix space) {
    load_rows(from, extent, 1.0f, space);
    return space;
  }

  using Left = periplus::kernels::cpu::Left;
  struct Right {
    const float* data;
    std::int64_t stride;
  };

  F32Products(float* copies, std::int64_t floats, const Progress& progress) : copies_(copies), floats_(floats), pulse_{progress} {}

  /// What the memory for copies must hold for an operand of this size.
  static std::int64_t floats(std::int64_t rows, std::int64_t columns) {
    return smaller(rows * packed_stride(columns), columns * packed_stride(rows)) + 16 * larger(rows, columns);
  }

  /// The operands made since a mark are gone.
  std::int64_t mark() const { return used_; }
  void release(std::int64_t mark) { used_ = mark; }
  Pulse& pulse() { return pulse_; }

  Left left(Matrix m, std::int64_t /*rows*/, std::int64_t /*depth*/) { return {m.data, m.stride, 1}; }
  Left left_transposed(Matrix m, std::int64_t /*rows*/, std::int64_t /*depth*/) { return {m.data, 1, m.stride}; }
  /// right_transposed() of the same rows may be of use.
  Left left_transposed(Matrix m, const Right& /*across*/, std::int64_t rows, std::int64_t depth) { return left_transposed(m, rows, depth); }
  Right right(Matrix m, std::int64_t /*depth*/, std::int64_t /*columns*/) { return {m.data, m.stride}; }
  /// m is [columns][depth].
  Right right_transposed(Matrix m, std::int64_t depth, std::int64_t columns) {
    const std::int64_t stride = packed_stride(columns);
    float* to = copies_ + used_;
    used_ += depth * stride;
    if (used_ > floats_) __builtin_trap();
    pack_transposed(m.data, m.stride, columns, depth, 1.0f, to, stride);
    return {to, stride};
  }

  /// Operands of the matrix times factors, element by element.
  template <class Factors>
  Left left_scaled(const Factors& factors, Matrix m, std::int64_t rows, std::int64_t depth, Matrix space) {
    multiply_elements(factors, m, rows, depth, space);
    return left(space, rows, depth);
  }
  template <class Factors>
  Left left_transposed_scaled(const Factors& factors, Matrix m, std::int64_t rows, std::int64_t depth, Matrix space) {
    multiply_elements(factors, m, depth, rows, space);
    return left_transposed(space, rows, depth);
  }
  template <class Factors>
  Right right_scaled(const Factors& factors, Matrix m, std::int64_t depth, std::int64_t columns, Matrix space) {
    multiply_elements(factors, m, depth, columns, space);
    return right(space, depth, columns);
  }
  /// Nothing is rounded here.
  template <class Factors>
  static Right right_rest(const Factors& /*factors*/, Matrix /*m*/, const Right& /*packed*/, std::int64_t /*depth*/,
                          std::int64_t /*columns*/) {
    return {};
  }
  template <class Factors>
  Right right_transposed_scaled(const Factors& factors, Matrix m, std::int64_t depth, std::int64_t columns, Matrix space) {
    multiply_elements(factors, m, columns, depth, space);
    return right_transposed(space, depth, columns);
  }

  /// c (Add ? += : =) a[rows][depth] b[depth][columns], c beginning with the first of the rows and columns.
  template <bool Add>
  void multiply(const Left& a, Range rows, const Right& b, Range columns, Range depth, Matrix c) {
    cpu::multiply<Add>({a.data + rows.begin * a.row + depth.begin * a.column, a.row, a.column},
                       b.data + depth.begin * b.stride + columns.begin, b.stride, depth.size(), rows.size(), columns.size(), c.data,
                       c.stride, pulse_);
  }
  /// take(c, row, column, rows, columns) for blocks of c = a[rows][depth] b[depth][columns] + lower[rows][rows] d[rows][columns], lower
  /// being a lower triangle. `space` is for all of c.
  template <class Take>
  void multiply_both(const Left& a, const Right& b, std::int64_t depth, const Left& lower, const Right& d, std::int64_t rows,
                     std::int64_t columns, Matrix space, const Take& take) {
    multiply<false>(a, {0, rows}, b, {0, columns}, {0, depth}, space);
    for (std::int64_t i = 0; i < rows; i += kRowBlock) {
      multiply<true>(lower, {i, i + kRowBlock}, d, {0, columns}, {0, i + kRowBlock}, space.below(i));
    }
    take(space, std::int64_t{0}, std::int64_t{0}, rows, columns);
  }

  /// state[rows][columns] = factor[row] * state + a[rows][depth] b[depth][columns]. `factors` are `next` apart; null: 1.
  void advance(Matrix state, const float* factors, std::int64_t next, const Left& a, const Right& b, const Right& /*rest*/,
               std::int64_t rows, std::int64_t depth, std::int64_t columns, const Right* /*packed*/) {
    for (std::int64_t d = 0; d < rows && factors != nullptr; ++d) {
      for (std::int64_t e = 0; e < columns; e += kLanes) store(state.row(d) + e, factors[d * next] * load(state.row(d) + e));
    }
    multiply<true>(a, {0, rows}, b, {0, columns}, {0, depth}, state);
  }

 private:
  float* copies_;
  std::int64_t floats_, used_ = 0;
  Pulse pulse_;
};

}  // namespace
}  // namespace periplus::kernels::cpu
