// Products of tokens with earlier tokens of their chunk, under the decay between them, and the way back. Included by runs.h.
//
//   p_ij = sum over d of a_id b_jd exp(g_id - g_jd) for j <= i
//
// With one decay per head the exponential is a factor of the finished product. With a decay per channel it belongs to both operands
// (algorithms.md 5.6): rows i of a strip of 16 carry the decay from the strip's first row on, rows j before the strip the decay
// down to that row, and both are numbers up to 1. Pairs inside a strip are computed one by one. A chunk whose decay is mild needs no
// strips: its rows carry all of the decay, and its keys are divided by it.
#pragma once

#include <type_traits>

#include "kernels/cpu/linear/decay.h"

namespace periplus::kernels::cpu {
namespace {

constexpr std::int64_t kStripRows = 16;

/// Rows with their decay, to be the operand of strips before or behind them.
struct ScoreSpace {
  Matrix far;    ///< [kChunk][D]
  Matrix grown;  ///< [kChunk][D]
  Matrix near;   ///< [kStripRows][D]
  Matrix sums;   ///< [kStripRows][D]
};

/// c (Add ? += : =) a b for a lower triangular a: row block by row block, as far as each reaches.
template <bool Add, class P>
void multiply_lower(P& products, const typename P::Left& a, const typename P::Right& b, std::int64_t rows, std::int64_t columns, Matrix c) {
  for (std::int64_t i = 0; i < rows; i += P::kRowBlock) {
    const std::int64_t end = smaller(i + P::kRowBlock, rows);
    products.template multiply<Add>(a, {i, end}, b, {0, columns}, {0, end}, c.below(i));
  }
}
/// The same for an upper triangular a.
template <bool Add, class P>
void multiply_upper(P& products, const typename P::Left& a, const typename P::Right& b, std::int64_t rows, std::int64_t columns, Matrix c) {
  for (std::int64_t i = 0; i < rows; i += P::kRowBlock) {
    products.template multiply<Add>(a, {i, smaller(i + P::kRowBlock, rows)}, b, {0, columns}, {i, rows}, c.below(i));
  }
}
/// The lower triangle of c (Add ? += : =) a b; what lies above is not defined.
template <bool Add, class P>
void multiply_to_lower(P& products, const typename P::Left& a, const typename P::Right& b, std::int64_t rows, std::int64_t depth,
                       Matrix c) {
  for (std::int64_t i = 0; i < rows; i += P::kRowBlock) {
    const std::int64_t end = smaller(i + P::kRowBlock, rows);
    products.template multiply<Add>(a, {i, end}, b, {0, end}, {0, depth}, c.below(i));
  }
}

/// p = decay(i, j) * p below the diagonal and on it, 0 above, whatever was there: 0 times it may be NaN.
template <class DecayOf>
void lower_triangle(std::int64_t rows, Matrix p, const DecayOf& decay_of) {
  const Ints lanes = lane_numbers();
  for (std::int64_t i = 0; i < rows; ++i) {
    std::int64_t j = 0;
    for (; j + kLanes <= i; j += kLanes) store(p.row(i) + j, decay_of(i, j) * load(p.row(i) + j));
    const Ints above = lanes > static_cast<std::int32_t>(i - j);
    store(p.row(i) + j, above ? Vec{} : decay_of(i, j) * load(p.row(i) + j));
    for (j += kLanes; j < rows; j += kLanes) store(p.row(i) + j, Vec{});
  }
}
/// With the decay from behind token j to behind token i, unless it is one per channel.
inline void decay_lower(const Decay& decay, std::int64_t rows, Matrix p) {
  if (decay.width != 1) return lower_triangle(rows, p, [](std::int64_t, std::int64_t) { return 1.0f; });
  lower_triangle(rows, p, [&](std::int64_t i, std::int64_t j) { return load(decay.between.row(i) + j); });
}

/// p of the pairs inside the strip from row `first` on.
inline void strip_scores(const Decay& decay, Matrix a, Matrix b, std::int64_t first, std::int64_t width, Matrix p) {
  for (std::int64_t j = 0; j < kStripRows; ++j) {
    Vec sum[kStripRows] = {};
    for (std::int64_t d = 0; d < width; d += kLanes) {
      Vec x = load(b.row(first + j) + d);
#pragma GCC unroll 16
      for (std::int64_t i = 0; i < kStripRows; ++i) {
        if (i < j) continue;
        if (i > j) x *= load(decay.step.row(first + i) + d);
        sum[i] += x * load(a.row(first + i) + d);
      }
    }
#pragma GCC unroll 16
    for (std::int64_t i = 0; i < kStripRows; ++i) p.row(first + i)[first + j] = i < j ? 0 : sum_of(sum[i]);
  }
}

/// near = rows of the strip, with the decay from its first row on.
inline void scale_near(const Decay& decay, Matrix a, std::int64_t first, std::int64_t width, Matrix near) {
  for (std::int64_t d = 0; d < width; d += kLanes) {
    Vec factor = splat(1.0f);
    for (std::int64_t i = 0; i < kStripRows; ++i) {
      if (i > 0) factor = flushed(factor * load(decay.step.row(first + i) + d));
      store(near.row(i) + d, factor * load(a.row(first + i) + d));
    }
  }
}
/// to[strip] += sums * the same decay.
inline void add_near(const Decay& decay, Matrix sums, std::int64_t first, std::int64_t width, Matrix to) {
  for (std::int64_t d = 0; d < width; d += kLanes) {
    Vec factor = splat(1.0f);
    for (std::int64_t i = 0; i < kStripRows; ++i) {
      if (i > 0) factor = flushed(factor * load(decay.step.row(first + i) + d));
      float* at = to.row(first + i) + d;
      store(at, load(at) + factor * load(sums.row(i) + d));
    }
  }
}

/// far = rows [0, first) of b with the decay down to row `first`, from the same for the strip before.
inline void extend_down(const Decay& decay, Matrix b, std::int64_t first, std::int64_t width, Matrix far) {
  for (std::int64_t d = 0; d < width; d += kLanes) {
    Vec factor = load(decay.step.row(first) + d);
    for (std::int64_t j = first - 1; j >= first - kStripRows; --j) {
      store(far.row(j) + d, factor * load(b.row(j) + d));
      if (j > first - kStripRows) factor = flushed(factor * load(decay.step.row(j) + d));
    }
    for (std::int64_t j = 0; j < first - kStripRows; ++j) store(far.row(j) + d, factor * load(far.row(j) + d));
  }
}
/// far = rows [end, rows) of a with the decay from behind row end - 1 on, from the same for the strip behind.
inline void extend_up(const Decay& decay, Matrix a, std::int64_t end, std::int64_t rows, std::int64_t width, Matrix far) {
  for (std::int64_t d = 0; d < width; d += kLanes) {
    Vec factor = splat(1.0f);
    for (std::int64_t i = end; i < end + kStripRows; ++i) {
      factor = flushed(factor * load(decay.step.row(i) + d));
      store(far.row(i) + d, factor * load(a.row(i) + d));
    }
    for (std::int64_t i = end + kStripRows; i < rows; ++i) store(far.row(i) + d, factor * load(far.row(i) + d));
  }
}

template <class P>
void channel_scores(P& products, const Decay& decay, Matrix a, Matrix b, std::int64_t rows, std::int64_t width, const ScoreSpace& space,
                    Matrix p) {
  for (std::int64_t first = 0; first < rows; first += kStripRows) {
    const std::int64_t end = first + kStripRows;
    if (first > 0) {
      const std::int64_t mark = products.mark();
      extend_down(decay, b, first, width, space.far);
      scale_near(decay, a, first, width, space.near);
      products.template multiply<false>(products.left(space.near, kStripRows, width), {0, kStripRows},
                                        products.right_transposed(space.far, width, first), {0, first}, {0, width}, p.below(first));
      products.release(mark);
    }
    strip_scores(decay, a, b, first, width, p);
    for (std::int64_t i = first; i < end && end < rows; ++i) {
      __builtin_memset(p.row(i) + end, 0, static_cast<std::size_t>(rows - end) * sizeof(float));
    }
    products.pulse().beat();
  }
}

/// Rows as an operand, under the decay from before the chunk if it is one per channel.
template <class P, class Rows>
typename P::Left grown_rows(P& products, const Decay& decay, const Rows& from, std::int64_t rows, std::int64_t width, Matrix space) {
  if (decay.per_channel()) return products.left_scaled(decay.up, from, rows, width, space);
  return products.left(from, rows, width);
}

/// Rows as the other operand, under the decay back to before the chunk if it is one per channel. None in strips.
template <class P, class Rows>
typename P::Right across_rows(P& products, const Decay& decay, const Rows& from, std::int64_t rows, std::int64_t width, Matrix space) {
  if (decay.in_strips()) return {};
  if (decay.per_channel()) return products.right_transposed_scaled(decay.back, from, width, rows, space);
  return products.right_transposed(from, width, rows);
}

/// p, with zeros above the diagonal, from grown rows a and rows b across; not in strips.
template <class P>
void whole_scores(P& products, const Decay& decay, const typename P::Left& a, const typename P::Right& b, std::int64_t rows,
                  std::int64_t width, Matrix p) {
  multiply_to_lower<false>(products, a, b, rows, width, p);
  decay_lower(decay, rows, p);
}
/// p, with zeros above the diagonal; `across` is across_rows() of b. In strips a and b are matrices.
template <class P, class Rows>
void scores(P& products, const Decay& decay, const Rows& a, const Rows& b, const typename P::Right& across, std::int64_t rows,
            std::int64_t width, const ScoreSpace& space, Matrix p) {
  if constexpr (std::is_same_v<Rows, Matrix>) {
    if (decay.in_strips()) return channel_scores(products, decay, a, b, rows, width, space, p);
  }
  const std::int64_t mark = products.mark();
  whole_scores(products, decay, grown_rows(products, decay, a, rows, width, space.grown), across, rows, width, p);
  products.release(mark);
}
template <class P>
void scores(P& products, const Decay& decay, Matrix a, Matrix b, std::int64_t rows, std::int64_t width, const ScoreSpace& space, Matrix p) {
  const std::int64_t mark = products.mark();
  scores(products, decay, a, b, across_rows(products, decay, b, rows, width, space.far), rows, width, space, p);
  products.release(mark);
}

/// da_i += sum over the strip's j <= i of dp_ij exp(g_i - g_j) b_j, and db likewise: each sum by Horner's rule.
inline void strip_scores_backward(const Decay& decay, Matrix dp, Matrix a, Matrix b, std::int64_t first, std::int64_t width, Matrix da,
                                  Matrix db) {
  for (std::int64_t row = first; row < first + kStripRows; ++row) {
    for (std::int64_t d = 0; d < width; d += kLanes) {
      Vec earlier = {};
      for (std::int64_t j = first; j <= row; ++j) {
        earlier = earlier * load(decay.step.row(j) + d) + dp.row(row)[j] * load(b.row(j) + d);
      }
      Vec later = {};
      for (std::int64_t i = first + kStripRows - 1; i > row; --i) {
        later = (later + dp.row(i)[row] * load(a.row(i) + d)) * load(decay.step.row(i) + d);
      }
      later += dp.row(row)[row] * load(a.row(row) + d);
      store(da.row(row) + d, load(da.row(row) + d) + earlier);
      store(db.row(row) + d, load(db.row(row) + d) + later);
    }
  }
}

template <class P>
void channel_scores_backward(P& products, const Decay& decay, Matrix dp, Matrix a, Matrix b, std::int64_t rows, std::int64_t width,
                             const ScoreSpace& space, Matrix da, Matrix db) {
  const std::int64_t mark = products.mark();
  const auto left = products.left(dp, rows, rows);
  const auto left_transposed = products.left_transposed(dp, rows, rows);
  const std::int64_t strip_mark = products.mark();
  // Rows that are not there yet must be zeros: a product may read a few more than it was asked for.
  clear(space.far, rows, width);
  for (std::int64_t first = kStripRows; first < rows; first += kStripRows) {
    extend_down(decay, b, first, width, space.far);
    products.template multiply<false>(left, {first, first + kStripRows}, products.right(space.far, rows, width), {0, width}, {0, first},
                                      space.sums);
    add_near(decay, space.sums, first, width, da);
    products.release(strip_mark);
  }
  clear(space.far, rows, width);
  for (std::int64_t end = rows - kStripRows; end > 0; end -= kStripRows) {
    const std::int64_t first = end - kStripRows;
    extend_up(decay, a, end, rows, width, space.far);
    products.template multiply<false>(left_transposed, {first, end}, products.right(space.far, rows, width), {0, width}, {end, rows},
                                      space.sums);
    for (std::int64_t d = 0; d < width; d += kLanes) {
      Vec factor = splat(1.0f);
      for (std::int64_t j = end - 1; j >= first; --j) {
        store(db.row(j) + d, load(db.row(j) + d) + factor * load(space.sums.row(j - first) + d));
        factor = flushed(factor * load(decay.step.row(j) + d));
      }
    }
    products.release(strip_mark);
  }
  products.release(mark);
  for (std::int64_t first = 0; first < rows; first += kStripRows) {
    strip_scores_backward(decay, dp, a, b, first, width, da, db);
    products.pulse().beat();
  }
}

/// da += , db += gradients, given that of p, of which nothing above the diagonal is read and which is lost.
template <class P>
void scores_backward(P& products, const Decay& decay, Matrix dp, Matrix a, Matrix b, std::int64_t rows, std::int64_t width,
                     const ScoreSpace& space, Matrix da, Matrix db) {
  decay_lower(decay, rows, dp);
  if (decay.per_channel()) return channel_scores_backward(products, decay, dp, a, b, rows, width, space, da, db);
  const std::int64_t mark = products.mark();
  multiply_lower<true>(products, products.left(dp, rows, rows), products.right(b, rows, width), rows, width, da);
  multiply_upper<true>(products, products.left_transposed(dp, rows, rows), products.right(a, rows, width), rows, width, db);
  products.release(mark);
}

}  // namespace
}  // namespace periplus::kernels::cpu
