// Weights P and their gradients dS from scores, for one unit: 32 keys x 32 query rows. Included by level_<unit>.cpp after a
// unit.
//
// P = 2^(S scale - lse), dS = P (dP - delta). Both leave as rows by key, bf16, with query rows (n, n + 16) in a lane: left
// operands of dV and dK. dS leaves also as pairs of keys (2 r, 2 r + 1) by query row: right operand of dQ; that costs four
// instructions for 64 gradients, because two rows of the first form hold the same numbers.
// The work comes in 16 pieces, each two keys by 32 query rows: about 56 vector instructions, half of them multiply-adds,
// which issue once a cycle while the tile unit runs. Stores count too: P and dS leave for the second-level cache.
#pragma once

#include "kernels/cpu/bf16/backward_pack.h"
#include "kernels/cpu/bf16/kernels.h"
#include "kernels/cpu/bf16/mask.h"
#include "kernels/cpu/bf16/softmax.h"

namespace periplus::kernels::cpu {
namespace {

/// Terms of 32 query rows; index: half.
struct RowTerms {
  Vec lse[2], delta[2];
  Vec scale;  ///< From scores to base 2.
};

struct UnitGradients {
  const float *scores, *dweights;  ///< [4 tiles], [4 tiles]
  bfloat16 *weights, *dscores;     ///< [2 tiles of 16 keys x 32 rows], likewise
  bfloat16* dscores_in_pairs;      ///< [2 tiles of 16 pairs of keys x 16 rows]
};

constexpr std::int64_t kPieces = 16;  // of a unit

/// What a pair that is masked or capped needs more than the others.
struct Special {
  const std::uint32_t* seen;  ///< [32 keys]: bits of the query rows.
  float cap, cap_scale;       ///< As in ForwardCall.
};

template <bool Plain>
[[gnu::always_inline]] inline void weigh_piece(const UnitGradients& on, std::int64_t piece, const RowTerms& terms, const Special& special) {
  Vec weights[4], dscores[4];  // (key 0, half 0), (key 0, half 1), (key 1, ...
#pragma GCC unroll 4
  for (std::int64_t i = 0; i < 4; ++i) {
    const std::int64_t half = i % 2, key = 2 * piece + i / 2;
    Vec s = load(score_row(on.scores, half, key));
    Vec slope = splat(1.0f);
    if (!Plain && special.cap > 0) {
      const Vec t = tanh(s * special.cap_scale);
      slope = 1.0f - t * t;
      s = special.cap * t;
    }
    weights[i] = weight(s * terms.scale - terms.lse[half]);
    dscores[i] = weights[i] * (load(score_row(on.dweights, half, key)) - terms.delta[half]);
    if constexpr (!Plain) {
      const std::uint32_t bits = special.seen[key] >> (16 * half);
      weights[i] = Unit::keep(weights[i], bits, Vec{});
      dscores[i] = Unit::keep(dscores[i] * slope, bits, Vec{});
    }
  }
  const std::int64_t at = piece * 64;
  store_bits(on.weights + at, Vec(Unit::pair(weights[0], weights[1])));
  store_bits(on.weights + at + 32, Vec(Unit::pair(weights[2], weights[3])));
  const Words first = Unit::pair(dscores[0], dscores[1]), second = Unit::pair(dscores[2], dscores[3]);
  store_bits(on.dscores + at, Vec(first));
  store_bits(on.dscores + at + 32, Vec(second));
  store_bits(on.dscores_in_pairs + piece * 32, Vec(Unit::lower_halves(first, second)));
  store_bits(on.dscores_in_pairs + kTile + piece * 32, Vec(Unit::upper_halves(first, second)));
}

/// Weighs a plain unit piece by piece between `Products` tile products. The first piece comes after product 1, when half of
/// the unit's dP is in memory, and the ninth after product 3 or later.
template <std::int64_t Products>
class PiecewiseWeights {
 public:
  [[gnu::always_inline]] PiecewiseWeights(const UnitGradients& on, const RowTerms& terms) : on_(on), terms_(terms) {}

  template <int I>
  [[gnu::always_inline]] void operator()(std::int64_t step, Product<I>) const {
    const std::int64_t product = 4 * step + I;
    if constexpr (kEvery > 1) {
      if (product % kEvery == kEvery - 1 && product / kEvery < kPieces) weigh_piece<true>(on_, product / kEvery, terms_, {});
    } else {
      for (std::int64_t i = 0; i < kAtOnce; ++i) {
        const std::int64_t piece = (product - 1) * kAtOnce + i;
        if (product > 0 && piece < kPieces) weigh_piece<true>(on_, piece, terms_, {});
      }
    }
  }
  [[gnu::always_inline]] void finish() const {
    for (std::int64_t piece = kDone; piece < kPieces; ++piece) weigh_piece<true>(on_, piece, terms_, {});
  }

 private:
  static constexpr std::int64_t kEvery = Products / kPieces;
  static constexpr std::int64_t kAtOnce = Products < kPieces ? 2 : 1;
  static constexpr std::int64_t kDone = kEvery > 1 || (Products - 1) * kAtOnce > kPieces ? kPieces : (Products - 1) * kAtOnce;
  UnitGradients on_;
  RowTerms terms_;
};

}  // namespace
}  // namespace periplus::kernels::cpu
