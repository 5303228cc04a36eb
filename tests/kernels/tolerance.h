#pragma once

#include "kernels/cpu_level.h"

/// Tolerances of the kernel tests by type, for operands drawn from N(0,1) and scale 1/sqrt(D). u = 2^-24.
namespace periplus::test {

/// out and lse of f32 arithmetic against f64, absolute. A score is a sum of D <= 128 terms with |score| <= 6: its error is
/// at most about 6 u sqrt(D) / 2 + 6 u = 2.4e-6, and typically a tenth of that; exp2 adds 1.6e-7, base 2 and back 3 u |lse|.
/// A weight moves by the error of its score relative to the mean error of its row, and out is a mean of |v| <= 4.5.
/// bf16 storage gives the same bound, because the reference sees the rounded operands.
inline constexpr double kStateTolerance = 5e-6;

/// Gradients, relative to 1 + their largest element: the weight error above, times sums over up to 300 x 8 rows whose
/// rounding grows with the square root of the count (u * 50 = 3e-6).
inline constexpr double kGradientTolerance = 1e-5;

/// As both above for kernels that keep one running sum an element instead of many partial ones: rounding grows with the count
/// (D <= 256, 300 x 8 rows) at worst, and with its square root times four in practice.
inline constexpr double kRunningSumTolerance = 4e-5;

/// bf16 and f16 storage on matrix tiles, absolute for lse and relative to 1 + the largest element for the rest: operands of
/// the second products (weights, score gradients) and possibly the scaled queries are rounded to bf16, an error of at most
/// 2^-9 each, and a sum of such terms errs by no more than that of its absolute terms.
inline constexpr double kTileTolerance = 1.0 / 128;

/// Whether bf16 runs on matrix tiles at a level.
inline bool has_tiles(kernels::CpuLevel level) {
  return level == kernels::CpuLevel::amx || level == kernels::CpuLevel::avx512_bf16 || level == kernels::CpuLevel::emulated_amx;
}

/// Relative error of rounding to bf16: half a unit in the eighth bit.
inline constexpr double kBfloat16Rounding = 1.0 / 256;
/// The same for f16, which keeps eleven bits.
inline constexpr double kFloat16Rounding = 1.0 / 2048;

}  // namespace periplus::test
