#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace periplus::plan {

/// Arithmetic modulo the prime 2^61 - 1.
namespace field {
inline constexpr std::uint64_t kPrime = (std::uint64_t{1} << 61) - 1;
inline std::uint64_t add(std::uint64_t a, std::uint64_t b) noexcept {
  const std::uint64_t sum = a + b;
  return sum >= kPrime ? sum - kPrime : sum;
}
inline std::uint64_t subtract(std::uint64_t a, std::uint64_t b) noexcept { return add(a, kPrime - b); }
inline std::uint64_t multiply(std::uint64_t a, std::uint64_t b) noexcept {
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(a) * b;
  return add(static_cast<std::uint64_t>(product) & kPrime, static_cast<std::uint64_t>(product >> 61));
}
std::uint64_t power(std::uint64_t base, std::uint64_t exponent) noexcept;
std::uint64_t inverse(std::uint64_t a) noexcept;
}  // namespace field

/// Rows first, first + stride, ... (`count` of them) of one axis of the packed sequence.
struct StridedRows {
  std::int64_t first = 0, count = 0, stride = 1;
};

/// A set of (head, query, key) triples, possibly with repeats, is summed up as
///     sum of  c^head a^query b^key   (mod 2^61 - 1)
/// with secret-like random a, b, c. Two different multisets agree with probability below 1e-12, so "each triple exactly
/// once" is one comparison, and a band adds its share in O(1): geometric sums with powers from tables.
class Fingerprint {
 public:
  /// `tokens` and `heads` bound the exponents; `seed` picks a, b, c.
  Fingerprint(std::int64_t tokens, std::int64_t heads, std::uint64_t seed);

  /// Sum over t < rows.count, u < keys.count with lo <= key(u) - query(t) <= hi of a^query(t) b^key(u), where
  /// query(t) = queries.first + t * queries.stride and likewise key(u). One stride must be 1, or both be equal.
  std::uint64_t band(const StridedRows& queries, const StridedRows& keys, std::int64_t lo, std::int64_t hi) const;
  /// Sum of c^head over [head0, head0 + count).
  std::uint64_t heads(std::int64_t head0, std::int64_t count) const;

 private:
  struct Axis {
    std::vector<std::uint64_t> powers;  ///< base^0 .. base^tokens
    /// Strides may reach beyond the table: a rank's second striped row need not exist.
    std::uint64_t power(std::int64_t exponent) const {
      const auto e = static_cast<std::size_t>(exponent);
      return e < powers.size() ? powers[e] : field::power(powers[1], e);
    }
  };
  std::uint64_t sum_of(const Axis& axis, const StridedRows& rows) const;
  std::uint64_t staircase(const Axis& outer, const StridedRows& rows, const Axis& inner, const StridedRows& columns, std::int64_t slope,
                          std::int64_t lo, std::int64_t hi) const;
  std::uint64_t edge(const Axis& outer, const StridedRows& rows, const Axis& inner, const StridedRows& columns, std::int64_t slope,
                     std::int64_t t0, std::int64_t t1, std::int64_t offset, std::int64_t clamp_low, std::int64_t clamp_high) const;
  std::uint64_t inverse_minus_one(std::uint64_t value) const;

  Axis a_, b_;
  std::vector<std::uint64_t> head_sums_;  ///< Prefix sums of c^h.
  mutable std::vector<std::pair<std::uint64_t, std::uint64_t>> inverses_;
};

}  // namespace periplus::plan
