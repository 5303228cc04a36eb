#include <algorithm>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/cpu/registers_512.h"
// Order matters: then the unit.
#include "kernels/cpu/bf16/unit_emulated.h"
// Then what uses it.
#include "kernels/cpu/bf16/mask.h"

namespace periplus::kernels::cpu {
namespace {

class RandomBands {
 public:
  std::int64_t number(std::int64_t least, std::int64_t most) { return std::uniform_int_distribution<std::int64_t>(least, most)(random_); }
  Band band(const UnitPlace& at) {
    return {around(at.q0), around(at.q0), around(at.k0), around(at.k0), diagonal(at.k0 - at.q0), diagonal(at.k0 - at.q0)};
  }

 private:
  std::int64_t around(std::int64_t place) {
    const std::int64_t kind = number(0, 4);
    if (kind == 0) return number(0, std::int64_t{1} << 42);
    return kind == 1 ? place : larger(0, place + number(-70, 70));
  }
  std::int64_t diagonal(std::int64_t here) {
    const std::int64_t kind = number(0, 4);
    if (kind < 2) return kind == 0 ? -kUnbounded : kUnbounded;
    return kind == 2 ? number(-(std::int64_t{1} << 42), std::int64_t{1} << 42) : here + number(-100, 100);
  }
  std::mt19937_64 random_{1};
};

bool sees(std::span<const Band> bands, std::int64_t q, std::int64_t k) {
  return std::ranges::any_of(bands, [&](const Band& band) {
    return band.q0 <= q && q < band.q1 && band.k0 <= k && k < band.k1 && k - q >= band.lo && k - q <= band.hi;
  });
}

TEST(UnitMask, IsThatOfEveryPair) {
  RandomBands random;
  std::int64_t visible = 0;
  for (int round = 0; round < 20000; ++round) {
    const std::int64_t q0 = random.number(0, round % 2 == 0 ? 100 : std::int64_t{1} << 35) * bf16::kUnit;
    const std::int64_t k0 = larger(0, q0 + random.number(-100, 100));
    const UnitPlace at{q0, q0 + bf16::kUnit, k0, k0 + random.number(1, bf16::kUnit)};
    std::vector<Band> bands(static_cast<std::size_t>(random.number(0, 4)));
    for (Band& band : bands) band = random.band(at);
    const bf16::TileBands tile{bands.data(), std::ssize(bands)};
    const Visible all = visible_pairs(tile, at);
    std::int64_t wrong = 0, seen = 0;
    for (std::int64_t key = 0; key < bf16::kUnit; ++key) {
      for (std::int64_t row = 0; row < bf16::kUnit; ++row) {
        const bool wanted = k0 + key < at.k1 && sees(bands, q0 + row, k0 + key);
        wrong += (all.rows[key] >> row & 1) != static_cast<std::uint32_t>(wanted);
        seen += wanted;
      }
    }
    ASSERT_EQ(wrong, 0) << "round " << round;
    if (wholly_allowed(tile, at)) {
      ASSERT_EQ(seen, bf16::kUnit * bf16::kUnit) << "round " << round;
    }
    visible += seen;
  }
  EXPECT_GT(visible, 100000);
}

TEST(UnitMask, GivesTheKeysThatAreSeenInOrder) {
  const Band bands[] = {{5, 40, 3, 70, -kUnbounded, 0}, {32, 64, 100, 101}};
  std::vector<std::pair<std::int64_t, std::uint32_t>> found;
  for_each_seen({bands, 2}, 32, {30, 200}, [&](std::int64_t k, std::uint32_t rows) { found.emplace_back(k, rows); });
  std::vector<std::pair<std::int64_t, std::uint32_t>> wanted;
  for (std::int64_t k = 30; k < 40; ++k) wanted.emplace_back(k, row_bits(larger(0, k - 32), 8));
  wanted.emplace_back(100, ~0u);
  EXPECT_EQ(found, wanted);
}

}  // namespace
}  // namespace periplus::kernels::cpu
