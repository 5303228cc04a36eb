// Weights from scores, for one unit: 32 keys x 32 query rows. Included by level_<unit>.cpp after a unit.
//
// Scores come transposed, keys by rows and query rows by lanes: sums over keys need no horizontal operation, and the
// weights, two keys to a lane, are already the B operand of V^T P^T. What limits the speed is vector instructions: while
// the tile unit runs, multiply-adds issue once a cycle. A vector of 16 weights takes one to scale and shift, a reduction
// to the fraction, three for the polynomial, one to apply the exponent: 6 cycles, against d / 16 for the tile products of
// the same 16 pairs, 8 at d = 128.
//
// The maximum is lazy. `top` need not be the maximum of a row, only near enough that no weight overflows: it stays until
// the weights of a unit sum to more than 2^24, and is then raised to the row's maximum, a rounded-up power of two, so that
// the factor on everything summed so far is exact. That replaces a maximum and a factor for each score by one compare for
// each unit. A fresh row starts at a `top` so low that its first visible key always triggers this.
#pragma once

#include "kernels/cpu/bf16/product.h"

namespace periplus::kernels::cpu {
namespace {

constexpr std::int64_t kUnitScores = 4 * 256;             // of a unit, f32
constexpr std::int64_t kUnitWeights = 2 * 512;            // of a unit, bf16
constexpr std::int64_t kUnitPairs = 16;                   // pairs of keys
constexpr float kFreshTop = -1e30f, kTooLarge = 0x1p24f;  // see above

/// Running softmax of 32 query rows; index: half.
struct Running {
  Vec top[2];    ///< In base 2, whole numbers.
  Vec total[2];  ///< Sum of the weights.
  Vec bf16[2];   ///< Sum of the weights as the products see them, rounded: sums are divided by this.
  Vec fresh[2];  ///< The part of `total` of the unit at work.
  Vec scale;     ///< From scores to base 2.
};

/// Row of scores of half `half`: two key tiles, each with a tile for each half.
template <class F>
[[gnu::always_inline]] inline F* score_row(F* scores, std::int64_t half, std::int64_t key) {
  return scores + (key / 16 * 2 + half) * 256 + key % 16 * 16;
}

/// 2^t to 7.5e-5 relative, far below the rounding of a weight to bf16 (3.9e-3): minimax cubic of 2^f on [0, 1).
[[gnu::always_inline]] inline Vec weight(Vec t) {
  const Vec f = Unit::fraction(t);
  Vec y = splat(0.07802452f);
  y = y * f + 0.22606716f;
  y = y * f + 0.69583354f;
  y = y * f + 0.99992522f;
  return Unit::scale_by_power(y, t);
}

/// The softmax of one half while a unit is at work: values, so that they stay in registers.
struct Softening {
  Vec scale, top, fresh;
};
[[gnu::always_inline]] inline Softening softening_of(const Running& running, int half) {
  return {running.scale, running.top[half], running.fresh[half]};
}

/// Weights of keys 2 pair, 2 pair + 1 for the 16 query rows of a half. `scores` and `weights` are those of the half.
[[gnu::always_inline]] inline void soften_pair(const float* scores, std::int64_t pair, Softening& half, bfloat16* weights) {
  const float* from = scores + pair / 8 * 512 + pair % 8 * 32;
  const Vec low = weight(load(from) * half.scale - half.top);
  const Vec high = weight(load(from + 16) * half.scale - half.top);
  half.fresh += low;
  half.fresh += high;
  const Words both = Unit::pair(low, high);
  __builtin_memcpy(static_cast<void*>(weights + pair * 32), &both, sizeof both);
}

/// Softens a unit piece by piece between tile products: Pairs pairs after each, the halves in turn. After product I of the
/// first step it needs the scores of accumulators up to I only.
template <std::int64_t Pairs>
class PiecewiseSoftmax {
 public:
  [[gnu::always_inline]] PiecewiseSoftmax(const float* scores, Running& running, bfloat16* weights)
      : scores_(scores), weights_(weights), even_(softening_of(running, 0)), odd_(softening_of(running, 1)) {}

  template <int I>
  [[gnu::always_inline]] void operator()(std::int64_t step, Product<I>) {
    const std::int64_t first = (2 * step + I / 2) * Pairs;
#pragma GCC unroll 8
    for (std::int64_t i = 0; i < Pairs; ++i) {
      if (first + i >= kUnitPairs) return;
      soften_pair(scores_ + I % 2 * 256, first + i, I % 2 == 0 ? even_ : odd_, weights_ + I % 2 * kTile);
    }
  }
  [[gnu::always_inline]] void finish(Running& running) const {
    running.fresh[0] = even_.fresh;
    running.fresh[1] = odd_.fresh;
  }

 private:
  const float* scores_;
  bfloat16* weights_;
  Softening even_, odd_;
};

inline void soften(const float* scores, Running& running, bfloat16* weights) {
  PiecewiseSoftmax<1> softmax(scores, running, weights);
  for (std::int64_t step = 0; step < kUnitPairs / 2; ++step) {
    softmax(step, Product<0>{});
    softmax(step, Product<1>{});
    softmax(step, Product<2>{});
    softmax(step, Product<3>{});
  }
  softmax.finish(running);
}

[[gnu::always_inline]] inline void settle(Running& running) {
  for (int half = 0; half < 2; ++half) {
    running.total[half] += running.fresh[half];
    running.fresh[half] = Vec{};
  }
}

/// Ends a unit: takes its weights into the totals, unless they are too large.
[[gnu::always_inline]] inline bool settled(Running& running) {
  const Vec bound = splat(kTooLarge);
  if (Unit::any_greater(running.fresh[0], bound) || Unit::any_greater(running.fresh[1], bound)) return false;
  settle(running);
  return true;
}

/// Whether no row has a `top` yet.
[[gnu::always_inline]] inline bool is_fresh(const Running& running) {
  const Vec fresh = splat(kFreshTop);
  return !Unit::any_greater(running.top[0], fresh) && !Unit::any_greater(running.top[1], fresh);
}

/// Raises `top` to the maximum of the unit and returns the factors for what was summed before.
struct Factors {
  Vec of[2];
};
[[gnu::noinline]] inline Factors raise_top(const float* scores, Running& running) {
  Factors factors;
  for (int half = 0; half < 2; ++half) {
    Vec part[4];  // so that maxima do not wait for each other
    for (Vec& most : part) most = splat(-kInfinity);
    for (std::int64_t key = 0; key < 32; ++key) {
      const Vec s = load(score_row(scores, half, key));
      part[key % 4] = Unit::larger(s, part[key % 4]);
    }
    Vec most = Unit::larger(Unit::larger(part[0], part[1]), Unit::larger(part[2], part[3]));
    most = Unit::ceil(most * running.scale);
    const Vec old = running.top[half];
    running.top[half] = most > old ? most : old;
    factors.of[half] = Unit::scale_by_power(splat(1.0f), old - running.top[half]);
    running.total[half] *= factors.of[half];
    running.bf16[half] *= factors.of[half];
    running.fresh[half] = Vec{};
  }
  return factors;
}

/// Sums the weights of a run as they were rounded, pair of keys by pair: work for the vector unit while the tile unit
/// multiplies them with the values.
class WeightSums {
 public:
  WeightSums(const bfloat16* weights, std::int64_t units) : next_(weights), end_(weights + units * kUnitWeights) {}

  /// The next 4 pairs, if there are any.
  [[gnu::always_inline]] void operator()() {
    if (next_ == end_) return;
#pragma GCC unroll 4
    for (std::int64_t i = 0; i < 4; ++i) {
      sums_[i] = Unit::add_pair(sums_[i], Words(load_bits(next_ + i * 32)));
      sums_[4 + i] = Unit::add_pair(sums_[4 + i], Words(load_bits(next_ + kTile + i * 32)));
    }
    next_ += 4 * 32;
    if (++quarter_ % 4 == 0) next_ += kTile;  // over the other half
  }
  void finish(Running& running) {
    while (next_ != end_) (*this)();
    running.bf16[0] += (sums_[0] + sums_[1]) + (sums_[2] + sums_[3]);
    running.bf16[1] += (sums_[4] + sums_[5]) + (sums_[6] + sums_[7]);
  }

 private:
  const bfloat16 *next_, *end_;
  std::int64_t quarter_ = 0;
  Vec sums_[8] = {};  // four of each half, so that additions do not wait for each other
};

/// Natural logarithm of positive normal numbers to 2e-7 + 1e-7 |ln x|; NaN stays NaN.
inline Vec natural_log(Vec x) {
  const Words bits = Words(x);
  // x = 2^power m with m in [sqrt(1/2), sqrt(2)): 0x3f3504f3 is sqrt(1/2).
  const Ints power = Ints(bits - 0x3f3504f3u) >> 23;
  const Vec m = Vec(bits - (Words(power) << 23));
  const Vec s = (m - 1.0f) / (m + 1.0f), z = s * s;
  Vec series = z * (2.0f / 9) + 2.0f / 7;
  series = series * z + 2.0f / 5;
  series = series * z + 2.0f / 3;
  series = series * z + 2.0f;
  const Vec result = s * series + __builtin_convertvector(power, Vec) * kLn2;
  return x == x ? result : x;
}

}  // namespace
}  // namespace periplus::kernels::cpu
