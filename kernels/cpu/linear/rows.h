// Rows of operands to f32 matrices in scratch, and results back. Included by runs.h.
#pragma once

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

struct Range {
  std::int64_t begin, end;

  std::int64_t size() const { return end - begin; }
};

/// Divides scratch; without memory it only counts.
class Carver {
 public:
  explicit Carver(float* memory) : memory_(memory) {}
  float* take(std::int64_t floats) {
    float* taken = memory_ == nullptr ? nullptr : memory_ + used_;
    used_ += round_up(floats, 16);
    return taken;
  }
  Matrix matrix(std::int64_t rows, std::int64_t columns) {
    const std::int64_t stride = packed_stride(columns);
    return {take(rows * stride), stride};
  }
  std::int64_t used() const { return used_; }

 private:
  float* memory_;
  std::int64_t used_ = 0;
};

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

/// Rounds to nearest even; NaN stays NaN.
inline void store_some(bfloat16* to, Vec x, std::int64_t count) {
  const Words bits = Words(x), rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16, quiet = (bits >> 16) | 0x40u;
  const Halves half = __builtin_convertvector(x == x ? rounded : quiet, Halves);
  __builtin_memcpy(static_cast<void*>(to), &half, static_cast<std::size_t>(smaller(count, kLanes)) * sizeof(bfloat16));
}
inline void store_some(float16* to, Vec x, std::int64_t count) {
  const Halves half = narrow_f16<Vec, Words, Halves>(x);
  __builtin_memcpy(static_cast<void*>(to), &half, static_cast<std::size_t>(smaller(count, kLanes)) * sizeof(float16));
}

/// to = factor * from
template <class S>
void store_rows(Matrix from, std::int64_t rows, std::int64_t width, float factor, HeadRows<S> to) {
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t i = 0; i < width; i += kLanes) {
      store_some(to.data + row * to.stride + i, load(from.row(row) + i) * factor, width - i);
    }
  }
}

template <int... I>
Vec rotated(Vec x, int by, std::integer_sequence<int, I...>) {
  Ints from;
  ((from[I] = (I + by) % kLanes), ...);
  return __builtin_shuffle(x, from);
}
/// The sum of all lanes.
inline float sum_of(Vec x) {
#pragma GCC unroll 4
  for (int by = kLanes / 2; by > 0; by /= 2) x += rotated(x, by, std::make_integer_sequence<int, kLanes>{});
  return x[0];
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
/// to += from
inline void add_rows(Matrix from, std::int64_t rows, std::int64_t width, Matrix to) {
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t i = 0; i < width; i += kLanes) store(to.row(row) + i, load(to.row(row) + i) + load(from.row(row) + i));
  }
}
/// to = a * b, element by element.
inline void multiply_elements(Matrix a, Matrix b, std::int64_t rows, std::int64_t width, Matrix to) {
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t i = 0; i < width; i += kLanes) store(to.row(row) + i, load(a.row(row) + i) * load(b.row(row) + i));
  }
}

}  // namespace
}  // namespace periplus::kernels::cpu
