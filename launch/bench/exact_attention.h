#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "launch/bench/attention_data.h"

/// Causal attention of one head for single rows and keys, by plain loops: cheap enough to check sequences of 64K tokens.
///
/// Real double: fp64 from the same operands, the truth. Real float: what a plain bf16 implementation computes: scores and
/// sums in f32, weights and score gradients rounded to bf16 before they are multiplied, the weights also before their sum.
namespace periplus::launch::bench {

/// Operands of the only head of a causal problem, bf16 widened.
struct HeadOperands {
  explicit HeadOperands(const AttentionData& data);
  std::int64_t rows, width;
  double scale;
  std::vector<float> q, k, v, dout;
};

template <class Real>
struct RowValues {
  std::vector<Real> out, dq;
  Real lse = 0, delta = 0;
  double largest_logit = 0;
};
template <class Real>
RowValues<Real> row_values(const HeadOperands& head, std::int64_t row);

template <class Real>
struct KeyValues {
  std::vector<Real> dk, dv;
};
/// `lse` and `delta` of all rows.
template <class Real>
KeyValues<Real> key_values(const HeadOperands& head, std::int64_t key, std::span<const float> lse, std::span<const float> delta);

}  // namespace periplus::launch::bench
