#include "launch/bench/exact_attention.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <type_traits>

namespace periplus::launch::bench {
namespace {

/// Partial sums, so that the loop vectorises without leave to reorder sums.
template <class Real>
Real dot(const float* a, const float* b, std::int64_t count) {
  std::array<Real, 8> sums{};
  for (std::int64_t i = 0; i + 8 <= count; i += 8) {
    for (std::size_t lane = 0; lane < 8; ++lane) sums[lane] += static_cast<Real>(a[lane]) * static_cast<Real>(b[lane]);
    a += 8, b += 8;
  }
  for (std::int64_t i = 0; i < count % 8; ++i) sums[0] += static_cast<Real>(a[i]) * static_cast<Real>(b[i]);
  Real total = 0;
  for (const Real sum : sums) total += sum;
  return total;
}

/// sum += weight * row
template <class Real>
void add_scaled(std::vector<Real>& sum, Real weight, const float* row) {
  for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += weight * static_cast<Real>(row[i]);
}

/// What an operand of a product keeps.
template <class Real>
Real as_operand(Real value) {
  if constexpr (std::is_same_v<Real, float>) {
    return static_cast<float>(bfloat16(value));
  } else {
    return value;
  }
}

std::vector<float> widened(const Tensor& tensor) {
  std::vector<float> values(static_cast<std::size_t>(tensor.view().elements()));
  copy(tensor, TensorView(std::as_writable_bytes(std::span(values)).data(), DType::f32, tensor.shape()));
  return values;
}

}  // namespace

HeadOperands::HeadOperands(const AttentionData& data)
    : rows(data.problem.key_rows),
      width(data.problem.width),
      scale(1 / std::sqrt(static_cast<double>(width))),
      q(widened(data.q)),
      k(widened(data.k)),
      v(widened(data.v)),
      dout(widened(data.dout)) {}

template <class Real>
RowValues<Real> row_values(const HeadOperands& head, std::int64_t row) {
  const std::int64_t width = head.width;
  const auto scale = static_cast<Real>(head.scale);
  const float *q = &head.q[static_cast<std::size_t>(row * width)], *dout = &head.dout[static_cast<std::size_t>(row * width)];
  const auto zeros = std::vector<Real>(static_cast<std::size_t>(width));
  RowValues<Real> values{zeros, zeros};
  std::vector<Real> scores;
  Real top = -std::numeric_limits<Real>::infinity();
  for (std::int64_t key = 0; key <= row; ++key) {
    scores.push_back(dot<Real>(q, &head.k[static_cast<std::size_t>(key * width)], width) * scale);
    top = std::max(top, scores.back());
    values.largest_logit = std::max(values.largest_logit, std::abs(static_cast<double>(scores.back())));
  }
  Real sum = 0;
  for (std::int64_t key = 0; key <= row; ++key) {
    const Real weight = as_operand<Real>(std::exp(scores[static_cast<std::size_t>(key)] - top));
    sum += weight;
    add_scaled(values.out, weight, &head.v[static_cast<std::size_t>(key * width)]);
  }
  for (Real& value : values.out) value /= sum;
  values.lse = top + std::log(sum);
  for (std::size_t i = 0; i < values.out.size(); ++i) values.delta += values.out[i] * static_cast<Real>(dout[i]);
  for (std::int64_t key = 0; key <= row; ++key) {
    const Real weight = std::exp(scores[static_cast<std::size_t>(key)] - values.lse);
    const Real slope = weight * (dot<Real>(dout, &head.v[static_cast<std::size_t>(key * width)], width) - values.delta);
    add_scaled(values.dq, as_operand<Real>(slope), &head.k[static_cast<std::size_t>(key * width)]);
  }
  for (Real& value : values.dq) value *= scale;
  return values;
}

template <class Real>
KeyValues<Real> key_values(const HeadOperands& head, std::int64_t key, std::span<const float> lse, std::span<const float> delta) {
  const std::int64_t width = head.width;
  const auto scale = static_cast<Real>(head.scale);
  const float *k = &head.k[static_cast<std::size_t>(key * width)], *v = &head.v[static_cast<std::size_t>(key * width)];
  const auto zeros = std::vector<Real>(static_cast<std::size_t>(width));
  KeyValues<Real> values{zeros, zeros};
  for (std::int64_t row = key; row < head.rows; ++row) {
    const auto at = static_cast<std::size_t>(row), begin = static_cast<std::size_t>(row * width);
    const Real weight = std::exp(dot<Real>(&head.q[begin], k, width) * scale - static_cast<Real>(lse[at]));
    const Real slope = weight * (dot<Real>(&head.dout[begin], v, width) - static_cast<Real>(delta[at]));
    add_scaled(values.dv, as_operand<Real>(weight), &head.dout[begin]);
    add_scaled(values.dk, as_operand<Real>(slope), &head.q[begin]);
  }
  for (Real& value : values.dk) value *= scale;
  return values;
}

template RowValues<double> row_values(const HeadOperands&, std::int64_t);
template RowValues<float> row_values(const HeadOperands&, std::int64_t);
template KeyValues<double> key_values(const HeadOperands&, std::int64_t, std::span<const float>, std::span<const float>);
template KeyValues<float> key_values(const HeadOperands&, std::int64_t, std::span<const float>, std::span<const float>);

}  // namespace periplus::launch::bench
