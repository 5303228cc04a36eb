#include "parallel/plan/fingerprint.h"

#include <map>
#include <random>

#include <gtest/gtest.h>

#include "kernels/band.h"

namespace periplus::plan {
namespace {

constexpr std::int64_t kTokens = 64, kHeads = 6;

/// Fingerprints of single pairs, and sums of them one by one.
class PairTable {
 public:
  explicit PairTable(const Fingerprint& of) {
    for (std::int64_t q = 0; q < kTokens; ++q) {
      for (std::int64_t k = 0; k < kTokens; ++k) pairs_.push_back(of.band({q, 1, 1}, {k, 1, 1}, -kUnbounded, kUnbounded));
    }
  }
  std::uint64_t at(std::int64_t q, std::int64_t k) const { return pairs_.at(static_cast<std::size_t>(q * kTokens + k)); }
  std::uint64_t sum(const StridedRows& queries, const StridedRows& keys, std::int64_t lo, std::int64_t hi) const {
    std::uint64_t sum = 0;
    for (std::int64_t t = 0; t < queries.count; ++t) {
      for (std::int64_t u = 0; u < keys.count; ++u) {
        const std::int64_t q = queries.first + t * queries.stride, k = keys.first + u * keys.stride;
        if (lo <= k - q && k - q <= hi) sum = field::add(sum, at(q, k));
      }
    }
    return sum;
  }

 private:
  std::vector<std::uint64_t> pairs_;
};

TEST(Field, InverseAndPowerAgreeWithMultiplication) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 1000; ++i) {
    const std::uint64_t a = 1 + random() % (field::kPrime - 1), b = random() % field::kPrime;
    EXPECT_EQ(field::multiply(a, field::inverse(a)), 1u);
    EXPECT_EQ(field::subtract(field::add(a, b), b), a);
    __extension__ using Wide = unsigned __int128;
    EXPECT_EQ(field::multiply(a, b), static_cast<std::uint64_t>(static_cast<Wide>(a) * b % field::kPrime));
  }
  EXPECT_EQ(field::power(3, 5), 243u);
  EXPECT_EQ(field::multiply(field::kPrime - 1, field::kPrime - 1), 1u);
}

TEST(Fingerprint, PairsAreProductsOfPowers) {
  const Fingerprint print(kTokens, kHeads, 5);
  const PairTable pairs(print);
  EXPECT_EQ(pairs.at(0, 0), 1u);
  for (std::int64_t q = 0; q < kTokens; ++q) {
    for (std::int64_t k = 0; k < kTokens; ++k) {
      EXPECT_EQ(pairs.at(q, k), field::multiply(field::power(pairs.at(1, 0), static_cast<std::uint64_t>(q)),
                                                field::power(pairs.at(0, 1), static_cast<std::uint64_t>(k))));
    }
  }
}

TEST(Fingerprint, BandEqualsTheSumOverItsPairs) {
  const Fingerprint print(kTokens, kHeads, 7);
  const PairTable pairs(print);
  std::mt19937_64 random(2);
  const auto between = [&](std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(high - low + 1));
  };
  const auto rows = [&](std::int64_t stride) {
    const std::int64_t first = between(0, kTokens - 1);
    return StridedRows{first, between(0, (kTokens - 1 - first) / stride + 1), stride};
  };
  for (int i = 0; i < 40000; ++i) {
    const std::int64_t stride = between(1, 9);
    const int shape = i % 3;  // equal strides, only the queries', only the keys'
    const StridedRows queries = rows(shape == 2 ? 1 : stride), keys = rows(shape == 1 ? 1 : stride);
    const std::int64_t lo = between(0, 5) == 0 ? -kUnbounded : between(-kTokens - 2, kTokens + 2);
    const std::int64_t hi = between(0, 5) == 0 ? kUnbounded : between(-kTokens - 2, kTokens + 2);
    ASSERT_EQ(print.band(queries, keys, lo, hi), pairs.sum(queries, keys, lo, hi))
        << "queries " << queries.first << "+" << queries.count << "*" << queries.stride << " keys " << keys.first << "+" << keys.count
        << "*" << keys.stride << " lo " << lo << " hi " << hi;
  }
}

TEST(Fingerprint, RowsBeyondTheTableStillCountWhenTheStrideIsLong) {
  const Fingerprint print(kTokens, kHeads, 7);
  const PairTable pairs(print);
  EXPECT_EQ(print.band({3, 1, 1000}, {5, 1, 1000}, -10, 10), pairs.at(3, 5));
  EXPECT_EQ(print.band({3, 1, 1000}, {5, 1, 1000}, 3, 10), 0u);
}

TEST(Fingerprint, EqualsExactlyWhenTheMultisetsAreEqual) {
  const Fingerprint print(kTokens, kHeads, 9);
  std::mt19937_64 random(3);
  const auto draw = [&](std::int64_t n) { return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(n)); };
  std::map<std::uint64_t, std::vector<int>> known;
  int repeats = 0;
  for (int i = 0; i < 20000; ++i) {
    // Up to three bands on a 4 x 4 corner, so that equal multisets do turn up.
    std::vector<int> counts(16, 0);
    std::uint64_t sum = 0;
    for (std::int64_t n = draw(4); n > 0; --n) {
      const std::int64_t q0 = draw(4), q1 = q0 + 1 + draw(4 - q0), k0 = draw(4), k1 = k0 + 1 + draw(4 - k0), lo = draw(7) - 3,
                         hi = lo + draw(4);
      sum = field::add(sum, print.band({q0, q1 - q0, 1}, {k0, k1 - k0, 1}, lo, hi));
      for (std::int64_t q = q0; q < q1; ++q) {
        for (std::int64_t k = k0; k < k1; ++k) counts[static_cast<std::size_t>(4 * q + k)] += lo <= k - q && k - q <= hi;
      }
    }
    const auto [entry, fresh] = known.emplace(sum, counts);
    if (!fresh) ++repeats;
    ASSERT_EQ(entry->second, counts) << "two multisets share a fingerprint";
  }
  std::map<std::vector<int>, int> multisets;
  for (const auto& [sum, counts] : known) ++multisets[counts];
  EXPECT_EQ(multisets.size(), known.size()) << "one multiset has two fingerprints";
  EXPECT_GT(repeats, 100);
}

TEST(Fingerprint, HeadsAreSumsOfDistinctPowers) {
  const Fingerprint print(kTokens, kHeads, 4);
  EXPECT_EQ(print.heads(0, 1), 1u);
  EXPECT_EQ(print.heads(2, 0), 0u);
  for (std::int64_t h = 0; h < kHeads; ++h) {
    EXPECT_EQ(print.heads(h, 1), field::power(print.heads(1, 1), static_cast<std::uint64_t>(h)));
    for (std::int64_t n = 0; h + n < kHeads; ++n) EXPECT_EQ(print.heads(h, n + 1), field::add(print.heads(h, n), print.heads(h + n, 1)));
  }
}

TEST(Fingerprint, SeedsGiveDifferentSums) {
  const StridedRows rows{0, 10, 1};
  EXPECT_NE(Fingerprint(kTokens, kHeads, 1).band(rows, rows, -3, 0), Fingerprint(kTokens, kHeads, 2).band(rows, rows, -3, 0));
}

}  // namespace
}  // namespace periplus::plan
