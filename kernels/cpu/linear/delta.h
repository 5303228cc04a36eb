// The delta rule inside a chunk (algorithms.md 6.2). Included by runs.h.
//
// What tokens add to the state S before the chunk is n = T diag(beta) (v - K S), K being the keys under the decay from before the
// chunk. T is applied last, to the small difference of v and what the state already says: with u = T diag(beta) v and w = T diag(beta)
// K made ahead, n = u - w S would be a small difference of large numbers, and cost one product more. Products of bf16 tiles apply T - I
// only: the largest part of n stays as it is.
#pragma once

#include "kernels/cpu/linear/scores.h"

namespace periplus::kernels::cpu {
namespace {

struct DeltaRule {
  float* beta;     ///< [kChunk]
  Matrix overlap;  ///< [kChunk][kChunk] keys with earlier keys, under the decay between them.
  Matrix inverse;  ///< T - I, T = (I + strict lower triangle of diag(beta) overlap)^-1
  Matrix early;    ///< K; backward -diag(beta) K.
  Matrix wanted;   ///< diag(beta) (v - K S); backward its gradient.
};

inline DeltaRule carve_delta_rule(std::int64_t padded_qk, std::int64_t columns, Carver& carver) {
  constexpr std::int64_t kChunk = linear::kChunk;
  DeltaRule delta;
  delta.beta = carver.take(kChunk);
  delta.overlap = carve_matrix(carver, kChunk, kChunk);
  delta.inverse = carve_matrix(carver, kChunk, kChunk);
  delta.early = carve_matrix(carver, kChunk, padded_qk);
  delta.wanted = carve_matrix(carver, kChunk, columns);
  return delta;
}

/// Row by row: T_i = e_i - beta_i sum over j < i of overlap_ij T_j.
inline void invert(const DeltaRule& delta, std::int64_t rows) {
  const Ints lanes = lane_numbers();
  clear(delta.inverse, rows, rows);
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t c = 0; c < i; c += kLanes) {
      const Ints earlier = lanes < static_cast<std::int32_t>(i - c);
      Vec sum[2] = {earlier ? load(delta.overlap.row(i) + c) : Vec{}, Vec{}};
      std::int64_t j = c;  // rows above are zero in these columns
      for (; j + 2 <= i; j += 2) {
        sum[0] += delta.overlap.row(i)[j] * load(delta.inverse.row(j) + c);
        sum[1] += delta.overlap.row(i)[j + 1] * load(delta.inverse.row(j + 1) + c);
      }
      if (j < i) sum[0] += delta.overlap.row(i)[j] * load(delta.inverse.row(j) + c);
      store(delta.inverse.row(i) + c, -delta.beta[i] * (sum[0] + sum[1]));
    }
  }
}

/// What does not depend on the state.
template <class P, class Rows>
void prepare(P& products, const Decay& decay, const Rows& k, const typename P::Right& across, std::int64_t rows, std::int64_t width,
             const ScoreSpace& space, const DeltaRule& delta) {
  scores(products, decay, k, k, across, rows, width, space, delta.overlap);
  invert(delta, rows);
}

/// added, wanted := diag(beta) (v - wanted)
template <class Rows>
void subtract_from_values(const Decay& decay, const Rows& v, std::int64_t rows, std::int64_t columns, const DeltaRule& delta,
                          Matrix added) {
  for (std::int64_t i = 0; i < rows; ++i) {
    const float beta = delta.beta[i], early = decay.per_head() ? beta * decay.up.data[i] : beta;
    for (std::int64_t e = 0; e < columns; e += kLanes) {
      const Vec wanted = vector_at(v, i, e) * beta - load(delta.wanted.row(i) + e) * early;
      store(delta.wanted.row(i) + e, wanted);
      store(added.row(i) + e, wanted);
    }
  }
}

/// added = n
template <class P, class Rows, class Values>
void solve(P& products, const Decay& decay, const Rows& k, const Values& v, const typename P::Right& state, std::int64_t rows,
           std::int64_t width, std::int64_t columns, const DeltaRule& delta, Matrix added) {
  const std::int64_t mark = products.mark();
  products.template multiply<false>(grown_rows(products, decay, k, rows, width, delta.early), {0, rows}, state, {0, columns}, {0, width},
                                    delta.wanted);
  products.release(mark);
  subtract_from_values(decay, v, rows, columns, delta, added);
  multiply_lower<true>(products, products.left(delta.inverse, rows, rows), products.right(delta.wanted, rows, columns), rows, columns,
                       added);
  products.release(mark);
}

/// dwanted = T^T dadded
template <class P>
void solve_backward(P& products, Matrix dadded, std::int64_t rows, std::int64_t columns, const DeltaRule& delta, Matrix dwanted) {
  copy_rows(dadded, rows, columns, dwanted);
  const std::int64_t mark = products.mark();
  multiply_upper<true>(products, products.left_transposed(delta.inverse, rows, rows), products.right(dadded, rows, columns), rows, columns,
                       dwanted);
  products.release(mark);
}

}  // namespace
}  // namespace periplus::kernels::cpu
