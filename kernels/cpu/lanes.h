// Vectors of f32 for all tile kernels. Included once by each level_<level>.cpp, after its registers_<bits>.h. Everything is in an
// unnamed namespace so that no function compiled for one instruction set can be linked into another; hence no standard
// library calls.
#pragma once

#include <cstdint>
#include <utility>

#include "kernels/cpu/instructions.h"
#include "runtime/dtype.h"

namespace periplus::kernels::cpu {
namespace {

using Vec = float __attribute__((vector_size(4 * kLanes)));
using Ints = std::int32_t __attribute__((vector_size(4 * kLanes)));
using Words = std::uint32_t __attribute__((vector_size(4 * kLanes)));
using Halves = std::uint16_t __attribute__((vector_size(2 * kLanes)));

constexpr float kInfinity = __builtin_inff();
constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kLn2 = 0.69314718055994530942f;

inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
inline std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }
inline std::int64_t round_up(std::int64_t n, std::int64_t unit) { return (n + unit - 1) / unit * unit; }
inline std::int64_t round_down(std::int64_t n, std::int64_t unit) { return n / unit * unit; }
/// Row stride of a packed tile: whole vectors, and an odd number of cache lines so that a column does not fall into one
/// set of the cache.
inline std::int64_t packed_stride(std::int64_t width) { return round_up(width, 32) + 16; }

inline Vec splat(float x) { return Vec{} + x; }
inline Vec load(const float* from) {
  Vec x;
  __builtin_memcpy(&x, from, sizeof x);
  return x;
}
inline Vec load(const bfloat16* from) {
  Halves half;
  __builtin_memcpy(&half, from, sizeof half);
  const Words word = widen_words<Words>(half) << 16;
  Vec x;
  __builtin_memcpy(&x, &word, sizeof x);
  return x;
}
inline Vec load(const float16* from) {
  Halves half;
  __builtin_memcpy(&half, from, sizeof half);
  return widen_f16<Vec, Words>(half);
}
/// The first `count` elements, then zeros.
template <class S>
Vec load_some(const S* from, std::int64_t count) {
  if (count >= kLanes) return load(from);
  S padded[kLanes] = {};
  __builtin_memcpy(static_cast<void*>(padded), from, static_cast<std::size_t>(count) * sizeof(S));
  return load(padded);
}
/// One element. Not by the conversions of dtype.h: those are inline functions that all instruction sets share.
template <class S>
float widened(const S* from) {
  return load_some(from, 1)[0];
}
inline void store(float* to, Vec x) { __builtin_memcpy(to, &x, sizeof x); }
inline void store_some(float* to, Vec x, std::int64_t count) {
  if (count >= kLanes) return store(to, x);
  __builtin_memcpy(to, &x, static_cast<std::size_t>(count) * sizeof(float));
}

inline Ints lane_numbers() {
  Ints lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = i;
  return lanes;
}
inline bool any(Ints mask) {
  std::int32_t all = 0;
  for (int i = 0; i < kLanes; ++i) all |= mask[i];
  return all != 0;
}

/// 2^x for x < 128 to 1.6e-7 relative: nearest integer by the magic constant 1.5 * 2^23 + 127, whose low bits then are the
/// exponent of 2^n, and a degree 5 polynomial for the rest (minimax on [-1/2, 1/2] with value 1 at 0: 9.2e-8). Below -126.5
/// the result is 0; NaN stays NaN.
inline Vec exp2(Vec x) {
  x = greater_or_second(splat(-127.0f), x);
  const Vec magic = splat(12583039.0f);
  const Vec shifted = x + magic;
  const Vec f = x - (shifted - magic);
  Vec y = splat(1.326472848e-3f);
  y = y * f + 9.671513923e-3f;
  y = y * f + 5.550733581e-2f;
  y = y * f + 2.402224243e-1f;
  y = y * f + 6.931470037e-1f;
  y = y * f + 1.0f;
  Words bits;
  __builtin_memcpy(&bits, &shifted, sizeof bits);
  bits <<= 23;
  Vec power;
  __builtin_memcpy(&power, &bits, sizeof power);
  return y * power;
}

/// tanh to 4e-7 relative: Taylor series near 0, where 1 - 2/(e^2x + 1) would cancel.
inline Vec tanh(Vec x) {
  const Vec limit = splat(20.0f);
  const Vec clamped = x > limit ? limit : x < -limit ? -limit : x;
  const Vec large = 1.0f - 2.0f / (exp2(clamped * (2 * kLog2E)) + 1.0f);
  const Vec z = x * x;
  Vec series = z * 3.59212803e-3f - 8.86323553e-3f;
  series = z * series + 2.18694885e-2f;
  series = z * series - 5.39682540e-2f;
  series = z * series + 1.33333333e-1f;
  series = z * series - 3.33333333e-1f;
  const Vec small = x + x * z * series;
  const Vec edge = splat(0.25f);
  return z < edge ? small : large;
}

template <int... I>
Vec zip_low(Vec a, Vec b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (I / 2 + I % 2 * kLanes)...);
}
template <int... I>
Vec zip_high(Vec a, Vec b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (kLanes / 2 + I / 2 + I % 2 * kLanes)...);
}

/// Transposes kLanes x kLanes elements by log2(kLanes) perfect shuffles.
inline void transpose(Vec (&rows)[kLanes]) {
  using Index = std::make_integer_sequence<int, kLanes>;
  Vec zipped[kLanes];
  for (int stage = 1; stage < kLanes; stage *= 2) {
    for (int i = 0; i < kLanes / 2; ++i) {
      zipped[2 * i] = zip_low(rows[i], rows[i + kLanes / 2], Index{});
      zipped[2 * i + 1] = zip_high(rows[i], rows[i + kLanes / 2], Index{});
    }
    for (int i = 0; i < kLanes; ++i) rows[i] = zipped[i];
  }
}

}  // namespace
}  // namespace periplus::kernels::cpu
