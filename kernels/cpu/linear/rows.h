// Rows of operands to f32 matrices in scratch, and results back. Included by runs.h.
#pragma once

#include "kernels/cpu/carver.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/linear/kernels.h"

namespace periplus::kernels::cpu {
namespace {

/// Row by row in scratch.
struct Matrix {
  float* data;
  std::int64_t stride;

  float* row(std::int64_t i) const { return data + i * stride; }
  Matrix below(std::int64_t i) const { return {row(i), stride}; }
  Matrix beside(std::int64_t column) const { return {data + column, stride}; }
};

inline Vec vector_at(Matrix m, std::int64_t row, std::int64_t column) { return load(m.row(row) + column); }
/// A matrix with the same number in all of a row.
struct RowFactors {
  const float* data;
};
inline Vec vector_at(RowFactors factors, std::int64_t row, std::int64_t /*column*/) { return splat(factors.data[row]); }

struct NoFactors {};
inline Vec vector_at(NoFactors, std::int64_t /*row*/, std::int64_t /*column*/) { return splat(1.0f); }

struct Range {
  std::int64_t begin, end;

  std::int64_t size() const { return end - begin; }
};

inline Matrix carve_matrix(Carver& carver, std::int64_t rows, std::int64_t columns) {
  const std::int64_t stride = packed_stride(columns);
  return {carver.take(rows * stride), stride};
}

/// Some rows of one head.
template <class T>
struct HeadRows {
  T* data;
  std::int64_t stride;
};
template <class T>
HeadRows<T> head_rows(const Strided<T>& tensor, std::int64_t row0, std::int64_t head) {
  return {tensor.data + row0 * tensor.row + head * tensor.head, tensor.row};
}

inline void clear(Matrix m, std::int64_t rows, std::int64_t columns) {
  for (std::int64_t i = 0; i < rows; ++i) __builtin_memset(m.row(i), 0, static_cast<std::size_t>(columns) * sizeof(float));
}

/// How many rows and columns an operand has, and how many its matrix has: what is missing becomes zeros.
struct Extent {
  std::int64_t rows, width, padded_rows, padded_width;
};

/// to = factor * from
template <class T>
void load_rows(HeadRows<const T> from, const Extent& extent, float factor, Matrix to) {
  for (std::int64_t row = 0; row < extent.rows; ++row) {
    float* at = to.row(row);
    std::int64_t i = 0;
    for (; i < extent.width; i += kLanes) {
      store(at + i, load_some(from.data + row * from.stride + i, extent.width - i) * factor);
    }
    for (; i < extent.padded_width; i += kLanes) store(at + i, Vec{});
  }
  clear(to.below(extent.rows), extent.padded_rows - extent.rows, extent.padded_width);
}

inline Halves narrow(Vec x, bfloat16) { return narrow_bf16<Vec, Words, Halves>(x); }
inline Halves narrow(Vec x, float16) { return narrow_f16<Vec, Words, Halves>(x); }

inline void store_whole(float* to, Vec x) { store(to, x); }
template <class S>
void store_whole(S* to, Vec x) {
  const Halves half = narrow(x, S{});
  __builtin_memcpy(static_cast<void*>(to), &half, sizeof half);
}
/// The first `count` elements, of which some are missing: copying a number of bytes that is not known ahead is slow.
template <class S>
void store_some(S* to, Vec x, std::int64_t count) {
  const Halves half = narrow(x, S{});
  __builtin_memcpy(static_cast<void*>(to), &half, static_cast<std::size_t>(count) * sizeof(S));
}

/// to = factor * from
template <class S>
void store_rows(Matrix from, std::int64_t rows, std::int64_t width, float factor, HeadRows<S> to) {
  for (std::int64_t row = 0; row < rows; ++row) {
    S* at = to.data + row * to.stride;
    std::int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) store_whole(at + i, load(from.row(row) + i) * factor);
    if (i < width) store_some(at + i, load(from.row(row) + i) * factor, width - i);
  }
}

template <int By, int... I>
[[gnu::always_inline]] inline Vec rotated(Vec x, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(x, x, ((I + By) % kLanes)...);
}
/// The sum of all lanes.
template <int By = kLanes / 2>
[[gnu::always_inline]] inline float sum_of(Vec x) {
  if constexpr (By == 0) {
    return x[0];
  } else {
    return sum_of<By / 2>(x + rotated<By>(x, std::make_integer_sequence<int, kLanes>{}));
  }
}

/// <a, b> over whole vectors.
inline float dot(const float* a, const float* b, std::int64_t width) {
  Vec sum = {};
  for (std::int64_t i = 0; i < width; i += kLanes) sum += load(a + i) * load(b + i);
  return sum_of(sum);
}

/// to[i] = sign * factor[i] * from[i]
inline void scale_rows(const float* factors, Matrix from, std::int64_t rows, std::int64_t width, Matrix to, float sign = 1.0f) {
  for (std::int64_t row = 0; row < rows; ++row) {
    const float factor = sign * factors[row];
    for (std::int64_t i = 0; i < width; i += kLanes) store(to.row(row) + i, factor * load(from.row(row) + i));
  }
}
inline void copy_rows(Matrix from, std::int64_t rows, std::int64_t columns, Matrix to) {
  for (std::int64_t i = 0; i < rows; ++i) __builtin_memcpy(to.row(i), from.row(i), static_cast<std::size_t>(columns) * sizeof(float));
}
/// to += from
inline void add_rows(Matrix from, std::int64_t rows, std::int64_t width, Matrix to) {
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t i = 0; i < width; i += kLanes) store(to.row(row) + i, load(to.row(row) + i) + load(from.row(row) + i));
  }
}
/// to = a * b, element by element.
template <class Factors>
void multiply_elements(const Factors& a, Matrix b, std::int64_t rows, std::int64_t width, Matrix to) {
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t i = 0; i < width; i += kLanes) store(to.row(row) + i, vector_at(a, row, i) * load(b.row(row) + i));
  }
}

}  // namespace
}  // namespace periplus::kernels::cpu
