#pragma once
// Element functions that the compiler can vectorise: no branches, no calls, everything inlined into the caller's
// instruction set. Functions of f64 whose accuracy matters more than speed use the standard library.

#include <bit>
#include <cmath>
#include <cstdint>

#include "runtime/dtype.h"

namespace periplus::kernels {

// A kernel that the compiler leaves out of line would run baseline instructions, hence always_inline throughout.

[[gnu::always_inline]] inline double widen(double value) { return value; }
[[gnu::always_inline]] inline float widen(float value) { return value; }
[[gnu::always_inline]] inline float widen(bfloat16 value) { return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16); }
[[gnu::always_inline]] inline float widen(float16 value) { return static_cast<float>(value); }

[[gnu::always_inline]] inline void store(double& to, double value) { to = value; }
[[gnu::always_inline]] inline void store(float& to, float value) { to = value; }
[[gnu::always_inline]] inline void store(float16& to, float value) { to = static_cast<float16>(value); }
/// Same rounding as bfloat16(float), without its branch.
[[gnu::always_inline]] inline void store(bfloat16& to, float value) {
  const auto word = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (word + 0x7fffu + ((word >> 16) & 1u)) >> 16;
  const std::uint32_t quiet = (word >> 16) | 0x40u;
  to.bits = static_cast<std::uint16_t>((word & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

/// e^x, relative error below 1.5e-7 on [-87.33, 88.37]; 0 below (no denormals), the value at the border above; NaN stays NaN.
/// Method: x = n ln2 + r, |r| <= ln2/2, degree-6 polynomial in r (Cephes expf), times 2^n.
[[gnu::always_inline]] inline float fast_exp(float x) {
  constexpr float kLowest = -87.33f, kHighest = 88.37f;
  constexpr float kRoundToInteger = 12582912.0f;  // 1.5 * 2^23: the sum's low mantissa bits are the nearest integer
  float clamped = x > kHighest ? kHighest : x;
  clamped = clamped < kLowest ? kLowest : clamped;
  const float shifted = clamped * 1.44269504f + kRoundToInteger;
  const float n = shifted - kRoundToInteger;
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float fraction = (p * (r * r) + r) + 1.0f;
  const std::uint32_t exponent = (std::bit_cast<std::uint32_t>(shifted) + 127u) << 23;
  const float result = fraction * std::bit_cast<float>(exponent);
  return x < kLowest ? 0.0f : result;
}
[[gnu::always_inline]] inline double fast_exp(double x) { return std::exp(x); }

template <class A>
[[gnu::always_inline]] inline A sigmoid(A x) {
  return A(1) / (A(1) + fast_exp(-x));
}

/// log(1 + x) for 0 <= x <= 1, relative error below 1.5e-7: 2 atanh(x / (2 + x)) as a series.
[[gnu::always_inline]] inline float fast_log1p(float x) {
  const float s = x / (2.0f + x), z = s * s;
  float p = 1.0f / 13.0f;
  p = p * z + 1.0f / 11.0f;
  p = p * z + 1.0f / 9.0f;
  p = p * z + 1.0f / 7.0f;
  p = p * z + 1.0f / 5.0f;
  p = p * z + 1.0f / 3.0f;
  return 2.0f * s * (p * z + 1.0f);
}
[[gnu::always_inline]] inline double fast_log1p(double x) { return std::log1p(x); }

/// log(1 + e^x), without overflow.
template <class A>
[[gnu::always_inline]] inline A softplus(A x) {
  const A positive = x > A(0) ? x : A(0);
  return positive + fast_log1p(fast_exp(x > A(0) ? -x : x));
}

/// Largest |x| that fast_sincos reduces exactly: the quotient by pi/2 must fit 20 bits.
inline constexpr double kFastSincosLimit = 1.6e6;

/// Sine and cosine, absolute error below 1e-15 for |x| <= kFastSincosLimit.
/// Method: x = n pi/2 + r with pi/2 in three parts of 33 bits (n times the first two is exact), fdlibm polynomials, quadrant by n mod 4.
[[gnu::always_inline]] inline void fast_sincos(double x, double& sine, double& cosine) {
  constexpr double kRoundToInteger = 6755399441055744.0;  // 1.5 * 2^52
  const double shifted = x * 6.36619772367581382433e-01 + kRoundToInteger;
  const double n = shifted - kRoundToInteger;
  const double r = ((x - n * 1.57079632673412561417e+00) - n * 6.07710050630396597660e-11) - n * 2.02226624879595063154e-21;
  const double z = r * r;
  double s = 1.58969099521155010221e-10;
  s = s * z - 2.50507602534068634195e-08;
  s = s * z + 2.75573137070700676789e-06;
  s = s * z - 1.98412698298579493134e-04;
  s = s * z + 8.33333333332248946124e-03;
  s = s * z - 1.66666666666666324348e-01;
  s = r + r * z * s;
  double c = -1.13596475577881948265e-11;
  c = c * z + 2.08757232129817482790e-09;
  c = c * z - 2.75573143513906633035e-07;
  c = c * z + 2.48015872894767294178e-05;
  c = c * z - 1.38888888888741095749e-03;
  c = c * z + 4.16666666666666019037e-02;
  c = (1.0 - 0.5 * z) + z * z * c;
  const auto quadrant = std::bit_cast<std::uint64_t>(shifted);
  const bool swapped = (quadrant & 1u) != 0;
  const double sine_size = swapped ? c : s, cosine_size = swapped ? s : c;
  sine = std::bit_cast<double>(std::bit_cast<std::uint64_t>(sine_size) ^ ((quadrant & 2u) << 62));
  cosine = std::bit_cast<double>(std::bit_cast<std::uint64_t>(cosine_size) ^ (((quadrant + 1) & 2u) << 62));
}

/// Sum of term(i) for i in [0, count), in 16 interleaved partial sums that are added pairwise: vectorisable, and in an
/// order that depends on `count` alone.
template <class A, class Term>
[[gnu::always_inline]] inline A lane_sum(std::int64_t count, const Term& term) {
  constexpr std::int64_t kLanes = 16;
  A lanes[kLanes] = {};
  const std::int64_t whole = count - count % kLanes;
  for (std::int64_t i = 0; i < whole; i += kLanes) {
    for (std::int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += term(i + lane);
  }
  for (std::int64_t i = whole; i < count; ++i) lanes[i - whole] += term(i);
  for (std::int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (std::int64_t lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

}  // namespace periplus::kernels
