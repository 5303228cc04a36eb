#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

namespace periplus {

/// Stands for "no bound" in Band::lo and Band::hi; far enough from the ends of int64 that shifting it cannot overflow.
inline constexpr std::int64_t kUnbounded = std::int64_t{1} << 60;

/// A rectangle of (q,k) pairs, rows [q0,q1) by keys [k0,k1), of which those with lo <= k - q <= hi are allowed.
/// Every mask is a list of disjoint bands (algorithms.md 1.3). Cutting the rectangle leaves lo and hi as they are;
/// moving the coordinates of q by -a and of k by -b adds a - b to both.
struct Band {
  std::int64_t q0 = 0, q1 = 0;
  std::int64_t k0 = 0, k1 = 0;
  std::int64_t lo = -kUnbounded, hi = kUnbounded;
  friend bool operator==(const Band&, const Band&) = default;
};

/// The same pairs when query rows are counted from `q` rows later in the views and keys from `k` later (negative: earlier).
inline Band moved(const Band& band, std::int64_t q, std::int64_t k) noexcept {
  return {band.q0 + q, band.q1 + q, band.k0 + k, band.k1 + k, band.lo + k - q, band.hi + k - q};
}

/// First and one-past-last allowed key of row q (begin >= end: none).
struct KeyRange {
  std::int64_t begin, end;
};
inline KeyRange keys_of(const Band& band, std::int64_t q) noexcept {
  return {std::max(band.k0, q + band.lo), std::min(band.k1, q + band.hi + 1)};
}

/// Number of allowed pairs, in closed form (algorithms.md 1.3).
std::int64_t area(const Band& band) noexcept;

}  // namespace periplus
