#pragma once

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "tests/kernels/linear_cases.h"

/// Plain computations of linear attention and the delta rule, without chunks or states, that round each matrix they make to bf16: what
/// errors of matrix instructions are measured against. For one head and one document in one run that no state enters or leaves.
namespace periplus::kernels::test {

/// Root mean square of differences over that of the exact numbers.
template <class T>
double relative_error(const Host<T>& got, const Host<double>& exact) {
  double errors = 0, squares = 0;
  for (std::int64_t row = 0; row < got.rows(); ++row) {
    for (std::int64_t i = 0; i < got.width(); ++i) {
      const double wanted = exact.get(row, 0, i), error = got.get(row, 0, i) - wanted;
      errors += error * error;
      squares += wanted * wanted;
    }
  }
  return std::sqrt(errors / squares);
}

inline double rounded(double x) { return static_cast<double>(bfloat16(static_cast<float>(x))); }
inline double dot(const Host<bfloat16>& a, std::int64_t i, const Host<bfloat16>& b, std::int64_t j) {
  double sum = 0;
  for (std::int64_t x = 0; x < a.width(); ++x) sum += a.get(i, 0, x) * b.get(j, 0, x);
  return sum;
}
template <class From>
void store_rounded(const From& from, Host<bfloat16>& to) {
  for (std::int64_t row = 0; row < to.rows(); ++row) {
    for (std::int64_t x = 0; x < to.width(); ++x) to(row, 0, x) = bfloat16(static_cast<float>(from.get(row, 0, x)));
  }
}

/// Linear attention: rounds scores, and with a decay per channel keys and queries that decayed.
class RoundedLinear {
 public:
  explicit RoundedLinear(LinearPass<bfloat16>& pass) : pass_(pass), c_(pass.c), decay_(static_cast<std::size_t>(c_.decay_width())) {}

  void compute() {
    for (std::int64_t i = 0; i < c_.rows; ++i) {
      std::fill(decay_.begin(), decay_.end(), 0.0);
      for (std::int64_t j = i; j >= 0; --j) {
        add_pair(i, j);
        for (std::size_t x = 0; x < decay_.size(); ++x) decay_[x] += pass_.log_decay.get(j, 0, static_cast<std::int64_t>(x));
      }
    }
    store_rounded(out_, pass_.out), store_rounded(dq_, pass_.dq), store_rounded(dk_, pass_.dk), store_rounded(dv_, pass_.dv);
    sum_decay_gradient();
  }

 private:
  /// Of channel x of keys, from the key to the query.
  double decay(std::int64_t x) const { return std::exp(decay_[decay_.size() == 1 ? 0 : static_cast<std::size_t>(x)]); }

  void add_pair(std::int64_t i, std::int64_t j) {
    const bool by_channel = c_.decay == Decay::diagonal;
    const double common = by_channel ? 1 : decay(0);
    double score = 0, slope = 0;
    for (std::int64_t x = 0; x < c_.width_qk; ++x) {
      score += pass_.q.get(i, 0, x) * (by_channel ? rounded(decay(x) * pass_.k.get(j, 0, x)) : pass_.k.get(j, 0, x));
    }
    for (std::int64_t x = 0; x < c_.width_v; ++x) slope += pass_.dout.get(i, 0, x) * pass_.v.get(j, 0, x);
    score = c_.scale * rounded(common * score), slope = c_.scale * rounded(common * slope);
    for (std::int64_t x = 0; x < c_.width_v; ++x) {
      out_(i, 0, x) += static_cast<float>(score * pass_.v.get(j, 0, x));
      dv_(j, 0, x) += static_cast<float>(score * pass_.dout.get(i, 0, x));
    }
    for (std::int64_t x = 0; x < c_.width_qk; ++x) {
      const auto decayed = [&](double number) { return by_channel ? rounded(decay(x) * number) : number; };
      dq_(i, 0, x) += static_cast<float>(slope * decayed(pass_.k.get(j, 0, x)));
      dk_(j, 0, x) += static_cast<float>(slope * decayed(pass_.q.get(i, 0, x)));
    }
  }
  void sum_decay_gradient() {
    std::vector<double> later(decay_.size(), 0);
    for (std::int64_t row = c_.rows - 1; row >= 0; --row) {
      for (std::int64_t x = 0; x < c_.width_qk; ++x) {
        later[later.size() == 1 ? 0 : static_cast<std::size_t>(x)] +=
            pass_.q.get(row, 0, x) * pass_.dq.get(row, 0, x) - pass_.k.get(row, 0, x) * pass_.dk.get(row, 0, x);
      }
      for (std::size_t x = 0; x < later.size(); ++x) {
        pass_.dlog_decay(row, 0, static_cast<std::int64_t>(x)) = row == 0 ? 0.0f : static_cast<float>(later[x]);
      }
    }
  }

  LinearPass<bfloat16>& pass_;
  const LinearCase& c_;
  std::vector<double> decay_;
  Host<float> out_{c_.rows, 1, c_.width_v}, dq_{c_.rows, 1, c_.width_qk}, dk_{dq_}, dv_{out_};
};

/// The delta rule with at most one decay per head, as one chunk (algorithms.md 6.2, 6.3, nothing coming in or going out). Rounds scores,
/// news, and the gradients of both; those of keys as rows and as columns of products.
class RoundedDelta {
 public:
  explicit RoundedDelta(LinearPass<bfloat16>& pass) : pass_(pass), n_(pass.c.rows) {
    sums_.assign(static_cast<std::size_t>(n_), 0);
    for (std::int64_t i = 0; i < n_; ++i) {
      sums_[static_cast<std::size_t>(i)] = (i == 0 ? 0 : sums_[static_cast<std::size_t>(i - 1)]) + decay_of(i);
    }
  }
  void compute() {
    const Host<bfloat16>&q = pass_.q, &k = pass_.k, &v = pass_.v, &dout = pass_.dout;
    const double scale = pass_.c.scale;
    // News from the first token on: what its key reads of those before goes off.
    for (std::int64_t i = 0; i < n_; ++i) {
      for (std::int64_t x = 0; x < v.width(); ++x) news_(i, 0, x) = beta(i) * v.get(i, 0, x);
      for (std::int64_t j = 0; j < i; ++j) add(-rounded(beta(i) * between(i, j) * dot(k, i, k, j)), news_, j, news_, i);
      round_row(news_, i);
      for (std::int64_t j = 0; j <= i; ++j) add(score(i, j), news_, j, out_, i);
    }
    // And their gradients from the last one on.
    for (std::int64_t j = n_ - 1; j >= 0; --j) {
      for (std::int64_t i = j; i < n_; ++i) add(score(i, j), dout, i, dnews_, j);
      for (std::int64_t i = j + 1; i < n_; ++i) add(-rounded(beta(i) * between(i, j) * dot(k, i, k, j)), dnews_, i, dnews_, j);
      round_row(dnews_, j);
    }
    for (std::int64_t i = 0; i < n_; ++i) {
      for (std::int64_t x = 0; x < v.width(); ++x) {
        dv_(i, 0, x) = beta(i) * dnews_.get(i, 0, x);
        pass_.dbeta(i, 0) += static_cast<float>(dnews_.get(i, 0, x) * v.get(i, 0, x));
      }
      for (std::int64_t j = 0; j <= i; ++j) {
        const double slope = rounded(scale * between(i, j) * product(dout, i, news_, j));
        const double pull = j < i ? rounded(-between(i, j) * product(dnews_, i, news_, j)) : 0;
        add(slope, k, j, dq_, i), add(slope, q, i, dk_by_columns_, j);
        add(beta(i) * pull, k, j, dk_by_rows_, i), add(beta(i) * pull, k, i, dk_by_columns_, j);
        pass_.dbeta(i, 0) += static_cast<float>(pull * dot(k, i, k, j));
      }
    }
    Host<double> dk = dk_by_rows_;
    for (std::int64_t row = 0; row < n_; ++row) add(1, dk_by_columns_, row, dk, row);
    store_rounded(out_, pass_.out), store_rounded(dq_, pass_.dq), store_rounded(dk, pass_.dk), store_rounded(dv_, pass_.dv);
    if (pass_.c.decay != Decay::none) sum_decay_gradient();
  }

 private:
  void sum_decay_gradient() {
    double later = 0;
    for (std::int64_t row = n_ - 1; row >= 0; --row) {
      round_row(dk_by_rows_, row), round_row(dk_by_columns_, row);
      later += product(pass_.q, row, pass_.dq, row) + product(pass_.k, row, dk_by_rows_, row) - product(pass_.k, row, dk_by_columns_, row);
      pass_.dlog_decay(row, 0) = row == 0 ? 0.0f : static_cast<float>(later);
    }
  }
  double decay_of(std::int64_t row) const { return pass_.c.decay == Decay::none ? 0 : pass_.log_decay.get(row, 0); }
  double beta(std::int64_t row) const { return pass_.beta.get(row, 0); }
  double between(std::int64_t i, std::int64_t j) const {
    return std::exp(sums_[static_cast<std::size_t>(i)] - sums_[static_cast<std::size_t>(j)]);
  }
  double score(std::int64_t i, std::int64_t j) const { return rounded(pass_.c.scale * between(i, j) * dot(pass_.q, i, pass_.k, j)); }
  template <class A, class B>
  static double product(const A& a, std::int64_t i, const B& b, std::int64_t j) {
    double sum = 0;
    for (std::int64_t x = 0; x < a.width(); ++x) sum += a.get(i, 0, x) * b.get(j, 0, x);
    return sum;
  }
  template <class From>
  static void add(double weight, const From& from, std::int64_t row, Host<double>& to, std::int64_t target) {
    for (std::int64_t x = 0; x < from.width(); ++x) to(target, 0, x) += weight * from.get(row, 0, x);
  }
  static void round_row(Host<double>& of, std::int64_t row) {
    for (std::int64_t x = 0; x < of.width(); ++x) of(row, 0, x) = rounded(of.get(row, 0, x));
  }

  LinearPass<bfloat16>& pass_;
  std::int64_t n_;
  std::vector<double> sums_;
  Host<double> out_{n_, 1, pass_.c.width_v}, news_{out_}, dnews_{out_}, dv_{out_}, dq_{n_, 1, pass_.c.width_qk}, dk_by_rows_{dq_},
      dk_by_columns_{dq_};
};

inline void compute_rounded(LinearPass<bfloat16>& pass) {
  pass.c.delta_rule ? RoundedDelta(pass).compute() : RoundedLinear(pass).compute();
}

}  // namespace periplus::kernels::test
