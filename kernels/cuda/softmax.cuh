#pragma once

#include <cmath>

#include "kernels/cuda/exp2.cuh"

/// Online softmax in base 2, the same on every rung.
namespace periplus::kernels::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

/// Weights are 2^(score - reference). The reference need not be the largest score so far, only so near that weights and their
/// sum stay small: it follows a row's scores when they pass it by more than a factor of 2^8, which soon happens no more, and
/// what was summed so far need not shrink each time. FlashAttention-4 does so too.
inline constexpr float kReferenceSlack = 8;

/// `top` is the largest of the new scores. Returns by what the sums so far shrink; exactly 1 if the reference stays.
__device__ __forceinline__ float move_reference(float& reference, float top) {
  const float before = reference;
  const bool moves = top - before > kReferenceSlack;  // not where both are -inf: no key was allowed so far
  reference = moves ? top : before;
  const float shrink = exp2_fast(before - top);
  return moves ? shrink : 1;
}
/// To subtract from scores: a row without an allowed key has none, and any finite number keeps -inf - (-inf) from becoming NaN.
__device__ __forceinline__ float origin_of(float reference) { return reference == -INFINITY ? 0 : reference; }

}  // namespace periplus::kernels::cuda
