// The delta rule inside a chunk (WY form, algorithms.md 6.2). Included by runs.h.
#pragma once

#include "kernels/cpu/linear/scores.h"

namespace periplus::kernels::cpu {
namespace {

/// What tokens add to the state, n = u + w S for the state S before the chunk, as a chunk of keys and values says it.
struct WyForm {
  float* beta;     ///< [kChunk]
  Matrix overlap;  ///< [kChunk][kChunk] keys with earlier keys, under the decay between them.
  Matrix inverse;  ///< T = (I + strict lower triangle of diag(beta) overlap)^-1
  Matrix u;        ///< T diag(beta) v
  Matrix w;        ///< -T diag(beta) times the keys under the decay from before the chunk: minus the W of algorithms.md.
  Matrix scaled;   ///< Space for an operand of T.
};

inline WyForm carve_wy(std::int64_t padded_qk, std::int64_t columns, Carver& carver) {
  constexpr std::int64_t kChunk = linear::kChunk;
  WyForm wy;
  wy.beta = carver.take(kChunk);
  wy.overlap = carver.matrix(kChunk, kChunk);
  wy.inverse = carver.matrix(kChunk, kChunk);
  wy.u = carver.matrix(kChunk, columns);
  wy.w = carver.matrix(kChunk, padded_qk);
  wy.scaled = carver.matrix(kChunk, larger(padded_qk, columns));
  return wy;
}

/// Row by row: T_i = e_i - beta_i sum over j < i of overlap_ij T_j.
inline void invert(const WyForm& wy, std::int64_t rows) {
  clear(wy.inverse, rows, rows);
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t c = 0; c < i; c += kLanes) {
      Vec sum[2] = {};
      std::int64_t j = c;  // rows above are zero in these columns
      for (; j + 2 <= i; j += 2) {
        sum[0] += wy.overlap.row(i)[j] * load(wy.inverse.row(j) + c);
        sum[1] += wy.overlap.row(i)[j + 1] * load(wy.inverse.row(j + 1) + c);
      }
      if (j < i) sum[0] += wy.overlap.row(i)[j] * load(wy.inverse.row(j) + c);
      store(wy.inverse.row(i) + c, -wy.beta[i] * (sum[0] + sum[1]));
    }
    wy.inverse.row(i)[i] = 1;
  }
}

/// Everything but u.
template <class P>
void make_transition(P& products, const Decay& decay, Matrix k, std::int64_t rows, std::int64_t width, const ScoreSpace& space,
                     const WyForm& wy) {
  scores(products, decay, k, k, rows, width, space, wy.overlap);
  invert(wy, rows);
  const Matrix grown = decayed(decay, decay.up, k, rows, width, wy.scaled);
  scale_rows(wy.beta, grown, rows, width, wy.scaled, -1.0f);
  const std::int64_t mark = products.mark();
  multiply_lower<false>(products, products.left(wy.inverse, rows, rows), products.right(wy.scaled, rows, width), rows, width, wy.w);
  products.release(mark);
}

template <class P>
void make_u(P& products, Matrix v, std::int64_t rows, std::int64_t columns, const WyForm& wy) {
  scale_rows(wy.beta, v, rows, columns, wy.scaled);
  const std::int64_t mark = products.mark();
  multiply_lower<false>(products, products.left(wy.inverse, rows, rows), products.right(wy.scaled, rows, columns), rows, columns, wy.u);
  products.release(mark);
}

}  // namespace
}  // namespace periplus::kernels::cpu
