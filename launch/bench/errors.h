#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>

namespace periplus::launch::bench {

/// Largest and root-mean-square error of values against better ones.
class ErrorSum {
 public:
  void add(double got, double wanted) {
    const double error = std::abs(got - wanted);
    // A NaN must not get lost in a comparison.
    largest_ = error <= largest_ ? largest_ : std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
    errors_ += error * error;
    squares_ += wanted * wanted;
  }
  template <class Got, class Wanted>
  void add(std::span<Got> got, std::span<Wanted> wanted) {
    for (std::size_t i = 0; i < wanted.size(); ++i) add(static_cast<double>(got[i]), static_cast<double>(wanted[i]));
  }
  double largest() const noexcept { return largest_; }
  /// Root mean square of the errors over that of the values.
  double relative() const noexcept { return errors_ == 0 ? 0 : std::sqrt(errors_ / squares_); }

 private:
  double largest_ = 0, errors_ = 0, squares_ = 0;
};

}  // namespace periplus::launch::bench
