#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "runtime/tensor.h"

// Tensors of a global problem, and what a rank has of them.
namespace periplus::test {

inline Tensor random_tensor(const Extents& shape, double factor, std::mt19937_64& random, const Memory& memory) {
  std::normal_distribution<double> normal;
  Tensor tensor(shape, DType::f64, memory);
  for (double& x : tensor.view().span<double>()) x = factor * normal(random);
  return tensor;
}

inline double largest(ConstTensorView tensor) {
  double most = 0;
  for (const double x : tensor.span<double>()) most = std::max(most, std::isfinite(x) ? std::abs(x) : 0.0);
  return most;
}

inline Tensor widened(ConstTensorView tensor, const Memory& memory) {
  Tensor wide(tensor.shape(), DType::f64, memory);
  copy(tensor, wide);
  return wide;
}

/// Of row t from row rows[t] of `all`. NaN counts as infinitely wrong; equal infinities as right.
inline double worst_difference(const Tensor& some, ConstTensorView all, std::span<const std::int64_t> rows) {
  const auto row_elements = static_cast<std::size_t>(all.size(1) * all.size(2));
  const auto got = some.view().span<double>();
  const auto want = all.span<double>();
  double worst = 0;
  for (std::size_t t = 0; t < rows.size(); ++t) {
    for (std::size_t i = 0; i < row_elements; ++i) {
      const double a = got[t * row_elements + i], b = want[static_cast<std::size_t>(rows[t]) * row_elements + i];
      if (a == b) continue;
      const double difference = std::abs(a - b);
      worst = std::isnan(difference) ? INFINITY : std::max(worst, difference);
    }
  }
  return worst / std::max(1.0, largest(all));
}

inline std::vector<std::int64_t> all_rows(const Tensor& tensor) {
  std::vector<std::int64_t> rows(static_cast<std::size_t>(tensor.shape()[0]));
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

}  // namespace periplus::test
