#include "kernels/band.h"

namespace periplus {
namespace {

// Sum over x = 1..m-1 of min(x, n): pairs of a staircase of m-1 rows that grows by one key a row up to n keys.
std::int64_t staircase(std::int64_t m, std::int64_t n) noexcept {
  if (m <= 1) return 0;
  if (m <= n + 1) return m * (m - 1) / 2;
  return n * (n + 1) / 2 + (m - 1 - n) * n;
}

}  // namespace

std::int64_t area(const Band& band) noexcept {
  const std::int64_t keys = band.k1 - band.k0;
  if (band.q0 >= band.q1 || keys <= 0) return 0;
  // Bounds beyond the corners change nothing; clamping keeps the products below from overflowing.
  const std::int64_t least = band.k0 - (band.q1 - 1);
  const std::int64_t most = band.k1 - 1 - band.q0;
  const std::int64_t lo = std::clamp(band.lo, least, most + 1);
  const std::int64_t hi = std::clamp(band.hi, least - 1, most);
  if (lo > hi) return 0;
  const auto at_most = [&](std::int64_t bound) {
    return staircase(band.q1 + bound + 1 - band.k0, keys) - staircase(band.q0 + bound + 1 - band.k0, keys);
  };
  return at_most(hi) - at_most(lo - 1);
}

}  // namespace periplus
