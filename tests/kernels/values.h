#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <omp.h>

#include "runtime/device.h"
#include "runtime/error.h"
#include "runtime/tensor.h"

/// Flat host vectors as tensors, and comparisons, for the tests of products and transformer parts.
namespace periplus::test {

/// Storage types in turn: body.template operator()<T>().
template <class Body>
void for_each_storage_type(const Body& body) {
  {
    SCOPED_TRACE("bf16");
    body.template operator()<bfloat16>();
  }
  {
    SCOPED_TRACE("f32");
    body.template operator()<float>();
  }
  SCOPED_TRACE("f64");
  body.template operator()<double>();
}

template <class T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
T narrowed(double value) {
  if constexpr (std::is_same_v<T, bfloat16>)
    return bfloat16(static_cast<float>(value));
  else
    return static_cast<T>(value);
}

template <class T>
std::vector<T> random_values(std::int64_t count, std::uint64_t seed, double scale = 1) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal(0, scale);
  std::vector<T> values(static_cast<std::size_t>(count));
  for (T& value : values) value = narrowed<T>(normal(random));
  return values;
}

template <class T>
std::vector<double> widened(const std::vector<T>& values) {
  std::vector<double> wide;
  for (const T& value : values) wide.push_back(static_cast<double>(value));
  return wide;
}

template <class T>
TensorView view(std::vector<T>& values, const Extents& shape) {
  return {reinterpret_cast<std::byte*>(values.data()), dtype_of<T>, shape};
}
template <class T>
ConstTensorView view(const std::vector<T>& values, const Extents& shape) {
  return {reinterpret_cast<const std::byte*>(values.data()), dtype_of<T>, shape};
}

/// Largest relative error of one rounding to T, which keeps 8, 24 or 53 significant bits.
template <class T>
constexpr double rounding() {
  return std::is_same_v<T, bfloat16> ? 0x1p-8 : std::is_same_v<T, float> ? 0x1p-24 : 0x1p-53;
}

/// |actual - expected| <= tolerance * (|expected| + size): `size` is the magnitude of the terms that may cancel.
template <class T>
void expect_close(const std::vector<T>& actual, const std::vector<double>& expected, double tolerance, double size = 1) {
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t i = 0; i < actual.size(); ++i) {
    const double got = static_cast<double>(actual[i]);
    ASSERT_LE(std::abs(got - expected[i]), tolerance * (std::abs(expected[i]) + size))
        << "element " << i << " is " << got << ", expected " << expected[i];
  }
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

/// Runs `compute` (which returns a vector) on teams of 1, 2 and 3 threads and expects the same bits.
template <class Compute>
void expect_same_on_all_teams(const Compute& compute) {
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  const auto alone = compute();
  for (const int threads : {2, 3}) {
    omp_set_num_threads(threads);
    EXPECT_TRUE(same_bits(alone, compute())) << threads << " threads";
  }
  omp_set_num_threads(before);
}

/// d f / d values[i] by central differences, for every i. `f` reads `values`; f64, error about 1e-9 for smooth f of size 1.
template <class F>
std::vector<double> numeric_gradient(std::vector<double>& values, const F& f, double step = 1e-5) {
  std::vector<double> gradient;
  for (double& value : values) {
    const double before = value;
    value = before + step;
    const double above = f();
    value = before - step;
    const double below = f();
    value = before;
    gradient.push_back((above - below) / (2 * step));
  }
  return gradient;
}

inline double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

/// Expects InvalidArgument whose message holds every one of `parts`.
template <class Call>
void expect_refused(const Call& call, const std::vector<std::string>& parts) {
  try {
    call();
    ADD_FAILURE() << "not refused";
  } catch (const InvalidArgument& error) {
    for (const std::string& part : parts) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << "'" << part << "' is not in: " << error.what();
    }
  }
}

}  // namespace periplus::test
