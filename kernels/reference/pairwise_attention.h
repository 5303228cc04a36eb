#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "runtime/tensor.h"

namespace periplus::kernels::reference {

/// Linear attention by its definition, pair by pair of tokens: what passes with states are compared with. Tensors are dense in host memory,
/// of f64. out_t = scale sum_s sum_d q_td W_ts,d k_sd v_s over the tokens s of its document, up to itself unless `bidirectional`; W is the
/// product of the decays behind the earlier token up to the later one. Normalised: divided by epsilon + what v = 1 gives.
struct PairwiseAttention {
  ConstTensorView q, k, v, log_decay;  ///< [tokens, heads, width]; log_decay may be empty.
  std::vector<std::int64_t> cu_seqlens;
  bool bidirectional = false, normalise = false;
  double scale = 1, epsilon = 0;

  void forward(TensorView out) const {
    std::vector<double> sums(static_cast<std::size_t>(q.size(0) * heads()), 0);
    std::ranges::fill(out.span<double>(), 0);
    for_each_pair([&](std::int64_t h, std::int64_t t, std::int64_t s, const std::vector<double>& decay) {
      const double weight = scale * score(h, t, s, decay);
      for (std::int64_t e = 0; e < v.size(2); ++e) at(out, t, h, e) += weight * at(v, s, h, e);
      sums[static_cast<std::size_t>(t * heads() + h)] += weight;
    });
    for (std::int64_t i = 0; normalise && i < out.elements(); ++i) {
      out.span<double>()[static_cast<std::size_t>(i)] /= sums[static_cast<std::size_t>(i / v.size(2))] + epsilon;
    }
  }

  /// All zero before.
  void backward(ConstTensorView dout, TensorView dq, TensorView dk, TensorView dv, TensorView dlog_decay) const {
    std::vector<double> sums(static_cast<std::size_t>(q.size(0) * heads()), 0), products(sums.size(), 0);
    for_each_pair([&](std::int64_t h, std::int64_t t, std::int64_t s, const std::vector<double>& decay) {
      const auto row = static_cast<std::size_t>(t * heads() + h);
      const double weight = scale * score(h, t, s, decay);
      sums[row] += weight;
      products[row] += weight * along(dout, t, s, h);
    });
    for_each_pair([&](std::int64_t h, std::int64_t t, std::int64_t s, const std::vector<double>& decay) {
      const auto row = static_cast<std::size_t>(t * heads() + h);
      const double z = normalise ? sums[row] + epsilon : 1;
      const double dweight = scale * (along(dout, t, s, h) / z - (normalise ? products[row] / (z * z) : 0));
      const double weight = scale * score(h, t, s, decay) / z;
      for (std::int64_t e = 0; e < v.size(2); ++e) at(dv, s, h, e) += weight * at(dout, t, h, e);
      for (std::int64_t d = 0; d < q.size(2); ++d) {
        const double factor = dweight * decay[static_cast<std::size_t>(d)];
        at(dq, t, h, d) += factor * at(k, s, h, d);
        at(dk, s, h, d) += factor * at(q, t, h, d);
        for (std::int64_t i = std::min(s, t) + 1; dlog_decay.dims() > 0 && i <= std::max(s, t); ++i) {
          at(dlog_decay, i, h, dlog_decay.size(2) == 1 ? 0 : d) += factor * at(q, t, h, d) * at(k, s, h, d);
        }
      }
    });
  }

 private:
  std::int64_t heads() const { return q.size(1); }
  static double& at(const TensorView& x, std::int64_t row, std::int64_t head, std::int64_t i) {
    return x.data<double>()[row * x.stride(0) + head * x.stride(1) + i];
  }
  static double at(const ConstTensorView& x, std::int64_t row, std::int64_t head, std::int64_t i) {
    return x.data<double>()[row * x.stride(0) + head * x.stride(1) + i];
  }
  double along(const ConstTensorView& dout, std::int64_t t, std::int64_t s, std::int64_t h) const {
    double sum = 0;
    for (std::int64_t e = 0; e < v.size(2); ++e) sum += at(dout, t, h, e) * at(v, s, h, e);
    return sum;
  }
  double score(std::int64_t h, std::int64_t t, std::int64_t s, const std::vector<double>& decay) const {
    double sum = 0;
    for (std::int64_t d = 0; d < q.size(2); ++d) sum += at(q, t, h, d) * decay[static_cast<std::size_t>(d)] * at(k, s, h, d);
    return sum;
  }

  template <class Fn>
  void for_each_pair(const Fn& fn) const {
    for (std::size_t document = 0; document + 1 < cu_seqlens.size(); ++document) {
      for (std::int64_t h = 0; h < heads(); ++h) {
        for (std::int64_t t = cu_seqlens[document]; t < cu_seqlens[document + 1]; ++t) {
          walk(h, t, -1, cu_seqlens[document] - 1, fn);
          if (bidirectional) walk(h, t, 1, cu_seqlens[document + 1], fn);
        }
      }
    }
  }
  /// From t on, itself included downward.
  template <class Fn>
  void walk(std::int64_t h, std::int64_t t, std::int64_t step, std::int64_t end, const Fn& fn) const {
    std::vector<double> logs(static_cast<std::size_t>(q.size(2)), 0), decay(logs);
    for (std::int64_t s = t; s != end; s += step) {
      if (s != t && log_decay.dims() > 0) {
        const std::int64_t later = std::max(s, s - step);
        for (std::size_t d = 0; d < logs.size(); ++d) {
          logs[d] += at(log_decay, later, h, log_decay.size(2) == 1 ? 0 : static_cast<std::int64_t>(d));
        }
      }
      std::ranges::transform(logs, decay.begin(), [](double x) { return std::exp(x); });
      if (s != t || step < 0) fn(h, t, s, decay);
    }
  }
};

}  // namespace periplus::kernels::reference
