#include "kernels/band.h"

#include <gtest/gtest.h>

#include "kernels/band_tiles.h"
#include "tests/kernels/attention_cases.h"

namespace periplus {
namespace {

std::int64_t counted(const Band& band) {
  std::int64_t pairs = 0;
  for (std::int64_t q = band.q0; q < band.q1; ++q) {
    for (std::int64_t k = band.k0; k < band.k1; ++k) pairs += k - q >= band.lo && k - q <= band.hi;
  }
  return pairs;
}

template <class Visit>
void for_each_small_band(Visit&& visit) {
  for (std::int64_t rows = 0; rows <= 4; ++rows) {
    for (std::int64_t keys = 0; keys <= 4; ++keys) {
      for (std::int64_t lo = -8; lo <= 8; ++lo) {
        for (std::int64_t hi = -8; hi <= 8; ++hi) {
          visit(Band{2, 2 + rows, 1, 1 + keys, lo == -8 ? -kUnbounded : lo, hi == 8 ? kUnbounded : hi});
        }
      }
    }
  }
}

TEST(Band, AreaEqualsCountForEverySmallBand) {
  for_each_small_band([](const Band& band) {
    ASSERT_EQ(area(band), counted(band)) << band.q0 << " " << band.q1 << " " << band.k0 << " " << band.k1 << " " << band.lo << " "
                                         << band.hi;
  });
}

TEST(Band, AreaOfHugeBandsDoesNotOverflow) {
  const std::int64_t tokens = std::int64_t{1} << 30;
  EXPECT_EQ(area({0, tokens, 0, tokens, -kUnbounded, 0}), tokens * (tokens + 1) / 2);
  EXPECT_EQ(area({0, tokens, 0, tokens}), tokens * tokens);
  EXPECT_EQ(area({0, tokens, 0, tokens, -kUnbounded - tokens, kUnbounded + tokens}), tokens * tokens);
  EXPECT_EQ(area({0, tokens, 0, tokens, kUnbounded, kUnbounded}), 0);
}

TEST(Band, TightenKeepsPairsAndLeavesNoSlack) {
  for_each_small_band([](const Band& band) {
    const Band tight = kernels::tighten(band);
    ASSERT_EQ(area(tight), counted(band));
    for (std::int64_t q = band.q0; q < band.q1; ++q) {
      const KeyRange all = keys_of(band, q);
      if (all.begin >= all.end) {
        ASSERT_TRUE(q < tight.q0 || q >= tight.q1);
        continue;
      }
      ASSERT_TRUE(q >= tight.q0 && q < tight.q1);
      ASSERT_EQ(keys_of(tight, q).begin, all.begin);
      ASSERT_EQ(keys_of(tight, q).end, all.end);
    }
  });
}

TEST(BandTiles, CutBandsAlongEitherAxisWithoutLossOrOverlap) {
  std::mt19937_64 random(11);
  for (int trial = 0; trial < 200; ++trial) {
    const std::int64_t rows = test::pick(random, 0, 60), keys = test::pick(random, 0, 60), tile = test::pick(random, 1, 20);
    const std::vector<Band> bands = test::random_bands(random, rows, keys);
    for (const auto axis : {kernels::BandTiles::Axis::query, kernels::BandTiles::Axis::key}) {
      const bool by_query = axis == kernels::BandTiles::Axis::query;
      const std::int64_t extent = by_query ? rows : keys;
      const bool even = trial % 2 == 0;
      std::vector<std::int64_t> cuts = {0};
      while (cuts.back() < extent) cuts.push_back(std::min(extent, cuts.back() + (even ? tile : test::pick(random, 1, 20))));
      const kernels::BandTiles tiles = even ? kernels::BandTiles(bands, axis, extent, tile) : kernels::BandTiles(bands, axis, cuts);
      ASSERT_EQ(tiles.tiles(), static_cast<std::int64_t>(cuts.size()) - 1);
      std::vector<int> hits(static_cast<std::size_t>(rows * keys));
      for (std::int64_t t = 0; t < tiles.tiles(); ++t) {
        for (const Band& band : tiles.of(t)) {
          ASSERT_GE(by_query ? band.q0 : band.k0, cuts[static_cast<std::size_t>(t)]);
          ASSERT_LE(by_query ? band.q1 : band.k1, cuts[static_cast<std::size_t>(t) + 1]);
          for (std::int64_t q = band.q0; q < band.q1; ++q) {
            for (std::int64_t k = keys_of(band, q).begin; k < keys_of(band, q).end; ++k) ++hits[static_cast<std::size_t>(q * keys + k)];
          }
        }
      }
      std::int64_t area = 0;
      for (std::int64_t q = 0; q < rows; ++q) {
        for (std::int64_t k = 0; k < keys; ++k) {
          ASSERT_EQ(hits[static_cast<std::size_t>(q * keys + k)], test::allowed(bands, q, k)) << "row " << q << " key " << k;
          area += test::allowed(bands, q, k);
        }
      }
      ASSERT_EQ(tiles.area(), area);
    }
  }
}

}  // namespace
}  // namespace periplus
