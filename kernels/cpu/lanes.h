// Included once by each tiles_<level>.cpp, after it has set kLanes and kMaxVectors. Everything is in an unnamed namespace
// so that no function compiled for one instruction set can be linked into another; hence no standard library calls.
#pragma once

#include <cstdint>
#include <utility>

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
  const Words word = __builtin_convertvector(half, Words) << 16;
  Vec x;
  __builtin_memcpy(&x, &word, sizeof x);
  return x;
}
/// The first `count` elements, then zeros.
template <class S>
Vec load_some(const S* from, std::int64_t count) {
  if (count >= kLanes) return load(from);
  S padded[kLanes] = {};
  __builtin_memcpy(static_cast<void*>(padded), from, static_cast<std::size_t>(count) * sizeof(S));
  return load(padded);
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

/// 2^x for x < 128 to 1.6e-7 relative: nearest integer by the magic constant 1.5 * 2^23, then a degree 5 polynomial for
/// the rest (minimax on [-1/2, 1/2] with value 1 at 0: 9.2e-8). Below -126.5 the result is 0; NaN stays NaN.
inline Vec exp2(Vec x) {
  const Vec floor = splat(-127.0f);
  x = x < floor ? floor : x;
  const Vec magic = splat(12582912.0f);
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
  bits = (bits - 0x4b400000u + 127u) << 23;
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

/// to[row][i] = from[row][i] in f32, columns padded with zeros to whole vectors.
template <class S>
void pack_rows(const S* from, std::int64_t row_stride, std::int64_t rows, std::int64_t width, float* to, std::int64_t to_stride) {
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t i = 0; i < width; i += kLanes) store(to + row * to_stride + i, load_some(from + row * row_stride + i, width - i));
  }
}

/// to[i][row] = from[row][i] in f32, rows padded with zeros to whole vectors.
template <class S>
void pack_transposed(const S* from, std::int64_t row_stride, std::int64_t rows, std::int64_t width, float* to, std::int64_t to_stride) {
  for (std::int64_t row = 0; row < rows; row += kLanes) {
    for (std::int64_t i = 0; i < width; i += kLanes) {
      Vec block[kLanes];
      for (std::int64_t r = 0; r < kLanes; ++r) {
        block[r] = row + r < rows ? load_some(from + (row + r) * row_stride + i, width - i) : Vec{};
      }
      transpose(block);
      for (std::int64_t c = 0; c < smaller(kLanes, width - i); ++c) store(to + (i + c) * to_stride + row, block[c]);
    }
  }
}

/// to[row][i] = (add ? to : 0) + factor[row] * from[i][row].
inline void unpack_transposed(const float* from, std::int64_t from_stride, std::int64_t rows, std::int64_t width, const float* factor,
                              bool add, float* to, std::int64_t row_stride) {
  for (std::int64_t row = 0; row < rows; row += kLanes) {
    for (std::int64_t i = 0; i < width; i += kLanes) {
      Vec block[kLanes];
      for (std::int64_t c = 0; c < kLanes; ++c) block[c] = i + c < width ? load(from + (i + c) * from_stride + row) : Vec{};
      transpose(block);
      for (std::int64_t r = 0; r < smaller(kLanes, rows - row); ++r) {
        float* at = to + (row + r) * row_stride + i;
        const Vec scaled = block[r] * factor[row + r];
        store_some(at, add ? load_some(at, width - i) + scaled : scaled, width - i);
      }
    }
  }
}

struct Left {
  const float* data;
  std::int64_t row, column;  ///< Strides.
};

/// c[j][lane] = (Add ? c : 0) + sum over t < depth of a[j][t] * b[t][lane] for J rows and N vectors of lanes.
template <int J, int N, bool Add>
inline void multiply_block(Left a, const float* b, std::int64_t b_stride, std::int64_t depth, float* c, std::int64_t c_stride) {
  Vec sum[J][N];
#pragma GCC unroll 8
  for (int j = 0; j < J; ++j) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) sum[j][n] = Add ? load(c + j * c_stride + n * kLanes) : Vec{};
  }
  for (std::int64_t t = 0; t < depth; ++t) {
    Vec right[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) right[n] = load(b + n * kLanes);
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
      const float left = a.data[j * a.row];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sum[j][n] += left * right[n];
    }
    a.data += a.column;
    b += b_stride;
  }
#pragma GCC unroll 8
  for (int j = 0; j < J; ++j) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) store(c + j * c_stride + n * kLanes, sum[j][n]);
  }
}

template <int N, bool Add>
void multiply_rows(Left a, const float* b, std::int64_t b_stride, std::int64_t depth, std::int64_t rows, float* c, std::int64_t c_stride) {
  const auto advance = [&](std::int64_t count) {
    a.data += count * a.row;
    c += count * c_stride;
    rows -= count;
  };
  for (; rows >= kMaxRows; advance(kMaxRows)) multiply_block<kMaxRows, N, Add>(a, b, b_stride, depth, c, c_stride);
  for (; rows >= 4; advance(4)) multiply_block<4, N, Add>(a, b, b_stride, depth, c, c_stride);
  for (; rows >= 2; advance(2)) multiply_block<2, N, Add>(a, b, b_stride, depth, c, c_stride);
  for (; rows >= 1; advance(1)) multiply_block<1, N, Add>(a, b, b_stride, depth, c, c_stride);
}

/// The same for any number of rows and any multiple of kLanes lanes.
template <bool Add>
void multiply(Left a, const float* b, std::int64_t b_stride, std::int64_t depth, std::int64_t rows, std::int64_t lanes, float* c,
              std::int64_t c_stride) {
  constexpr std::int64_t kWide = kMaxVectors * kLanes;
  for (; lanes >= kWide; lanes -= kWide, b += kWide, c += kWide) {
    multiply_rows<kMaxVectors, Add>(a, b, b_stride, depth, rows, c, c_stride);
  }
  if (lanes == 3 * kLanes) return multiply_rows<3, Add>(a, b, b_stride, depth, rows, c, c_stride);
  if (lanes == 2 * kLanes) return multiply_rows<2, Add>(a, b, b_stride, depth, rows, c, c_stride);
  if (lanes == kLanes) multiply_rows<1, Add>(a, b, b_stride, depth, rows, c, c_stride);
}

}  // namespace
}  // namespace periplus::kernels::cpu
