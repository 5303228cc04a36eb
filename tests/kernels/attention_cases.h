#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "kernels/attention.h"

/// Operands, masks and a naive dense softmax for the attention tests.
namespace periplus::test {

inline constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

/// Owns [rows, heads, width] with optional gaps between heads and rows; the gaps hold a value no kernel may change.
template <class T>
class Host {
 public:
  Host() = default;
  Host(std::int64_t rows, std::int64_t heads, std::int64_t width, std::int64_t gap = 0)
      : rows_(rows), heads_(heads), width_(width), head_(width + gap), row_(heads * (width + gap) + gap) {
    data_.assign(static_cast<std::size_t>(rows * row_ + 1), gap_value());
    for_each([&](T& value) { value = T(0.0f); });
  }

  T& operator()(std::int64_t row, std::int64_t head, std::int64_t i = 0) { return data_[index(row, head, i)]; }
  double get(std::int64_t row, std::int64_t head, std::int64_t i = 0) const { return static_cast<double>(data_[index(row, head, i)]); }
  std::int64_t rows() const { return rows_; }
  std::int64_t heads() const { return heads_; }
  std::int64_t width() const { return width_; }
  const std::vector<T>& raw() const { return data_; }

  TensorView view() { return {reinterpret_cast<std::byte*>(data_.data()), dtype_of<T>, {rows_, heads_, width_}, {row_, head_, 1}}; }
  operator TensorView() { return view(); }
  operator ConstTensorView() { return view(); }

  template <class Visit>
  void for_each(Visit&& visit) {
    for (std::int64_t row = 0; row < rows_; ++row) {
      for (std::int64_t head = 0; head < heads_; ++head) {
        for (std::int64_t i = 0; i < width_; ++i) visit((*this)(row, head, i));
      }
    }
  }
  Host& fill(double value) {
    for_each([&](T& to) { to = T(static_cast<float>(value)); });
    return *this;
  }
  Host& randomize(std::mt19937_64& random, double scale = 1) {
    std::normal_distribution<double> normal(0, scale);
    for_each([&](T& to) { to = static_cast<T>(static_cast<float>(normal(random))); });
    return *this;
  }
  /// Same numbers in f64 without gaps.
  Host<double> widened() const {
    Host<double> wide(rows_, heads_, width_);
    for (std::int64_t row = 0; row < rows_; ++row) {
      for (std::int64_t head = 0; head < heads_; ++head) {
        for (std::int64_t i = 0; i < width_; ++i) wide(row, head, i) = get(row, head, i);
      }
    }
    return wide;
  }
  bool gaps_untouched() {
    Host copy = *this;
    copy.fill(0);
    std::int64_t kept = 0;
    for (const T& value : copy.data_) kept += static_cast<double>(value) == static_cast<double>(gap_value());
    return kept == static_cast<std::int64_t>(data_.size()) - rows_ * heads_ * width_;
  }

 private:
  static T gap_value() { return T(768.0f); }
  std::size_t index(std::int64_t row, std::int64_t head, std::int64_t i) const {
    return static_cast<std::size_t>(row * row_ + head * head_ + i);
  }
  std::int64_t rows_ = 0, heads_ = 0, width_ = 0, head_ = 0, row_ = 0;
  std::vector<T> data_;
};

struct Case {
  std::int64_t query_rows = 1, key_rows = 1, heads = 1, kv_heads = 1, width_qk = 8, width_v = 8;
  std::vector<Band> bands = {};
  double scale = 1, softcap = 0;
  std::int64_t gap = 0;
  kernels::Update update = kernels::Update::overwrite;
};

inline std::int64_t pick(std::mt19937_64& random, std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(random);
}
inline std::int64_t pick_of(std::mt19937_64& random, const std::vector<std::int64_t>& choices) {
  return choices[static_cast<std::size_t>(pick(random, 0, static_cast<std::int64_t>(choices.size()) - 1))];
}

/// One band per document, of one of the four kinds, over a random cut of the rows and keys; some documents have none.
inline std::vector<Band> random_bands(std::mt19937_64& random, std::int64_t query_rows, std::int64_t key_rows) {
  std::vector<Band> bands = {};
  const std::int64_t longest = pick(random, 0, 2) == 0 ? 20 : std::max<std::int64_t>(query_rows, 1);
  for (std::int64_t q = 0, k = 0; q < query_rows && k < key_rows;) {
    const std::int64_t rows = std::min(pick(random, 1, longest), query_rows - q);
    const std::int64_t keys = std::min(pick(random, 1, std::max<std::int64_t>(1, rows * 2)), key_rows - k);
    Band band{q, q + rows, k, k + keys};
    const std::int64_t diagonal = k - q + pick(random, -3, 3);
    const std::int64_t kind = pick(random, 0, 4);
    if (kind == 1 || kind == 3) band.hi = diagonal;
    if (kind == 2) band.lo = diagonal;
    if (kind == 3) band.lo = diagonal - pick(random, 0, rows);
    if (kind != 4) bands.push_back(band);
    q += rows;
    k += keys;
  }
  return bands;
}

inline bool allowed(const std::vector<Band>& bands, std::int64_t q, std::int64_t k) {
  for (const Band& band : bands) {
    if (q >= band.q0 && q < band.q1 && k >= band.k0 && k < band.k1 && k - q >= band.lo && k - q <= band.hi) return true;
  }
  return false;
}

/// Result of a pass in f64: state and, when asked for, gradients.
struct Dense {
  Host<double> out, lse, dq, dk, dv;
};

/// Softmax attention from its definition; with dout also all gradients, through the softmax Jacobian written out.
inline Dense dense_attention(const Case& c, const Host<double>& q, const Host<double>& k, const Host<double>& v,
                             const Host<double>* dout = nullptr, const Host<double>* dlse = nullptr) {
  Dense result{Host<double>(c.query_rows, c.heads, c.width_v), Host<double>(c.query_rows, c.heads, 1),
               Host<double>(c.query_rows, c.heads, c.width_qk), Host<double>(c.key_rows, c.kv_heads, c.width_qk),
               Host<double>(c.key_rows, c.kv_heads, c.width_v)};
  for (std::int64_t h = 0; h < c.heads; ++h) {
    const std::int64_t g = h / (c.heads / c.kv_heads);
    for (std::int64_t i = 0; i < c.query_rows; ++i) {
      std::vector<std::int64_t> keys;
      std::vector<double> scores, slopes;
      double top = kMinusInfinity;
      for (std::int64_t j = 0; j < c.key_rows; ++j) {
        if (!allowed(c.bands, i, j)) continue;
        double s = 0;
        for (std::int64_t x = 0; x < c.width_qk; ++x) s += q.get(i, h, x) * k.get(j, g, x);
        s *= c.scale;
        const double t = c.softcap > 0 ? std::tanh(s / c.softcap) : 0;
        keys.push_back(j);
        scores.push_back(c.softcap > 0 ? c.softcap * t : s);
        slopes.push_back(1 - t * t);
        top = std::max(top, scores.back());
      }
      double sum = 0;
      for (const double s : scores) sum += std::exp(s - top);
      result.lse(i, h) = keys.empty() ? kMinusInfinity : top + std::log(sum);
      double mean = 0;
      std::vector<double> weights, direct;
      for (std::size_t n = 0; n < keys.size(); ++n) {
        weights.push_back(std::exp(scores[n] - top) / sum);
        direct.push_back(0);
        for (std::int64_t x = 0; x < c.width_v; ++x) {
          result.out(i, h, x) += weights[n] * v.get(keys[n], g, x);
          if (dout != nullptr) direct[n] += dout->get(i, h, x) * v.get(keys[n], g, x);
        }
        mean += weights[n] * direct[n];
      }
      if (dout == nullptr) continue;
      for (std::size_t n = 0; n < keys.size(); ++n) {
        const double ds = weights[n] * (direct[n] - mean + (dlse != nullptr ? dlse->get(i, h) : 0)) * slopes[n] * c.scale;
        for (std::int64_t x = 0; x < c.width_qk; ++x) {
          result.dq(i, h, x) += ds * k.get(keys[n], g, x);
          result.dk(keys[n], g, x) += ds * q.get(i, h, x);
        }
        for (std::int64_t x = 0; x < c.width_v; ++x) result.dv(keys[n], g, x) += weights[n] * dout->get(i, h, x);
      }
    }
  }
  return result;
}

/// Largest |a - b|; equal infinities count as 0, and any other mismatch of non-finite values as infinity.
template <class X, class Y>
double largest_difference(const Host<X>& a, const Host<Y>& b) {
  double worst = 0;
  for (std::int64_t row = 0; row < a.rows(); ++row) {
    for (std::int64_t head = 0; head < a.heads(); ++head) {
      for (std::int64_t i = 0; i < a.width(); ++i) {
        const double x = a.get(row, head, i), y = b.get(row, head, i);
        if (x == y || (std::isnan(x) && std::isnan(y))) continue;
        const double gap = std::abs(x - y);
        worst = std::isnan(gap) ? std::numeric_limits<double>::infinity() : std::max(worst, gap);
      }
    }
  }
  return worst;
}

}  // namespace periplus::test
