#include "parallel/mask.h"

#include <algorithm>
#include <random>
#include <set>
#include <string>

#include <gtest/gtest.h>

#include "runtime/error.h"

namespace periplus {
namespace {

using Lengths = std::vector<std::int64_t>;

std::size_t document_of(const Lengths& cu, std::int64_t row) {
  return static_cast<std::size_t>(std::upper_bound(cu.begin(), cu.end(), row) - cu.begin());
}

/// The words of MaskSpec, one pair at a time.
bool allowed(const MaskSpec& spec, const Lengths& cu, std::int64_t q, std::int64_t k) {
  if (document_of(cu, q) != document_of(cu, k)) return false;
  if (spec.causal && k > q) return false;
  const bool left = spec.window_left < 0 || q - k <= spec.window_left;
  const bool right = spec.window_right < 0 || k - q <= spec.window_right;
  return (left && right) || k - cu[document_of(cu, q) - 1] < spec.sink_tokens;
}

/// How often each pair of an n x n matrix is covered.
class Counts {
 public:
  explicit Counts(std::int64_t n) : n_(n), counts_(static_cast<std::size_t>(n * n), 0) {}
  int& at(std::int64_t q, std::int64_t k) { return counts_.at(static_cast<std::size_t>(q * n_ + k)); }
  /// Adds a band whose rows stand for the given global rows.
  void add(const Band& band, const Lengths& q_rows, const Lengths& k_rows) {
    for (std::int64_t q = band.q0; q < band.q1; ++q) {
      for (std::int64_t k = band.k0; k < band.k1; ++k) {
        if (band.lo <= k - q && k - q <= band.hi) ++at(q_rows.at(static_cast<std::size_t>(q)), k_rows.at(static_cast<std::size_t>(k)));
      }
    }
  }
  void expect_exactly(const MaskSpec& spec, const Lengths& cu) {
    for (std::int64_t q = 0; q < n_; ++q) {
      for (std::int64_t k = 0; k < n_; ++k) ASSERT_EQ(at(q, k), allowed(spec, cu, q, k) ? 1 : 0) << "q " << q << " k " << k;
    }
  }

 private:
  std::int64_t n_;
  std::vector<int> counts_;
};

Lengths first_rows(std::int64_t n) {
  Lengths rows(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<std::int64_t>(i);
  return rows;
}

const std::vector<MaskSpec> kSpecs{{true, -1, -1, 0}, {false, -1, -1, 0}, {true, 5, -1, 0},   {true, 0, -1, 0},
                                   {false, 4, -1, 0}, {false, -1, 3, 0},  {false, 4, 2, 0},   {true, 4, 2, 0},
                                   {true, 3, -1, 2},  {true, 3, -1, 100}, {false, 2, 1, 3},   {false, -1, 0, 4},
                                   {false, 0, 0, 1},  {true, -1, -1, 5},  {false, -1, -1, 5}, {false, 6, -1, 2}};
const std::vector<Lengths> kPackings{{0}, {0, 0}, {0, 1}, {0, 23}, {0, 1, 2, 3, 20}, {0, 0, 7, 7, 7, 18, 19}, {0, 2, 30, 31, 40}};

std::string describe(const MaskSpec& spec, const Lengths& cu) {
  return std::string(spec.causal ? "causal" : "full") + " window " + std::to_string(spec.window_left) + "," +
         std::to_string(spec.window_right) + " sinks " + std::to_string(spec.sink_tokens) + " cu " + testing::PrintToString(cu);
}

TEST(Mask, BandsAreDisjointAndExactlyThePredicate) {
  for (const MaskSpec& spec : kSpecs) {
    for (const Lengths& cu : kPackings) {
      SCOPED_TRACE(describe(spec, cu));
      const Mask mask(spec, cu);
      Counts counts(cu.back());
      std::int64_t pairs = 0;
      for (const Band& band : mask.bands()) counts.add(band, first_rows(cu.back()), first_rows(cu.back()));
      counts.expect_exactly(spec, cu);
      for (std::int64_t q = 0; q < cu.back(); ++q) {
        for (std::int64_t k = 0; k < cu.back(); ++k) pairs += allowed(spec, cu, q, k);
      }
      EXPECT_EQ(mask.area(), pairs);
      EXPECT_TRUE(std::is_sorted(mask.bands().begin(), mask.bands().end(), [](const Band& a, const Band& b) { return a.q0 < b.q0; }));
    }
  }
}

/// Chops the rows at random and deals each part to one rank whole or to several in strides.
SequenceLayout random_layout(int ranks, const Lengths& cu, std::mt19937_64& random) {
  const auto below = [&](std::int64_t n) { return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(n)); };
  std::vector<Segment> segments;
  for (std::int64_t row = 0; row < cu.back();) {
    const std::int64_t length = std::min(1 + below(14), cu.back() - row), stride = std::min(1 + below(4), length);
    for (std::int64_t first = 0; first < stride; ++first)
      segments.push_back({static_cast<int>(below(ranks)), 0, row + first, (length - first + stride - 1) / stride, stride});
    row += length;
  }
  std::shuffle(segments.begin(), segments.end(), random);
  std::vector<std::int64_t> next(static_cast<std::size_t>(ranks), 0);
  for (Segment& s : segments) {
    s.local0 = next[static_cast<std::size_t>(s.rank)];
    next[static_cast<std::size_t>(s.rank)] += s.length;
  }
  return SequenceLayout::from_segments(ranks, cu, segments);
}

void expect_bands_cover_mask(const SequenceLayout& layout, const MaskSpec& spec, const Lengths& cu) {
  const Mask mask(spec, cu);
  Counts counts(cu.back());
  std::int64_t area_of_all = 0;
  for (int q_rank = 0; q_rank < layout.ranks(); ++q_rank) {
    for (int k_rank = 0; k_rank < layout.ranks(); ++k_rank) {
      std::vector<Band> bands{{-7, -7, -7, -7}};
      append_bands_between(layout, mask, q_rank, k_rank, bands);
      ASSERT_EQ(bands.front(), (Band{-7, -7, -7, -7})) << "append replaced what was there";
      for (std::size_t b = 1; b < bands.size(); ++b) {
        ASSERT_GT(area(bands[b]), 0);
        counts.add(bands[b], layout.global_rows(q_rank), layout.global_rows(k_rank));
      }
    }
    area_of_all += area_of_rank(layout, mask, q_rank);
  }
  counts.expect_exactly(spec, cu);
  EXPECT_EQ(area_of_all, mask.area());
}

TEST(BandsBetweenRanks, CoverTheMaskOnceInEveryLayout) {
  for (const LayoutKind kind : {LayoutKind::contiguous, LayoutKind::zigzag, LayoutKind::striped, LayoutKind::document_zigzag}) {
    for (const int ranks : {1, 2, 3, 4, 8}) {
      for (const Lengths& cu : kPackings) {
        for (const MaskSpec& spec : kSpecs) {
          SCOPED_TRACE(std::string(to_string(kind)) + " " + std::to_string(ranks) + " ranks " + describe(spec, cu));
          expect_bands_cover_mask(SequenceLayout::make(kind, ranks, cu), spec, cu);
        }
      }
    }
  }
}

TEST(BandsBetweenRanks, CoverTheMaskOnceInCustomLayoutsOfMixedStrides) {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    std::mt19937_64 random(seed);
    Lengths cu{0};
    for (std::uint64_t n = 1 + random() % 4; n > 0; --n) cu.push_back(cu.back() + static_cast<std::int64_t>(random() % 30));
    const MaskSpec spec = kSpecs[random() % kSpecs.size()];
    SCOPED_TRACE("seed " + std::to_string(seed) + " " + describe(spec, cu));
    expect_bands_cover_mask(random_layout(1 + static_cast<int>(random() % 5), cu, random), spec, cu);
  }
}

TEST(Mask, DigestsTellMasksApartAndEqualMasksAreEqual) {
  std::set<std::uint64_t> digests;
  const Lengths cu{0, 20, 40};
  const std::vector<MaskSpec> different{{true, -1, -1, 0}, {false, -1, -1, 0}, {true, 5, -1, 0}, {true, 5, -1, 1}, {false, 5, 5, 0}};
  for (const MaskSpec& spec : different) digests.insert(Mask(spec, cu).digest());
  digests.insert(Mask({}, Lengths{0, 19, 40}).digest());
  EXPECT_EQ(digests.size(), different.size() + 1);
  EXPECT_EQ(Mask({}, cu).digest(), Mask({true, -1, 7, 0}, cu).digest()) << "a right window means nothing under causal";
}

TEST(Mask, RefusesNegativeSizes) {
  for (const MaskSpec& spec : std::vector<MaskSpec>{{true, -2, -1, 0}, {false, -1, -3, 0}, {true, 4, -1, -1}}) {
    try {
      Mask(spec, Lengths{0, 8});
      ADD_FAILURE() << describe(spec, {});
    } catch (const InvalidArgument& error) {
      EXPECT_NE(std::string(error.what()).find("-1 for unlimited"), std::string::npos) << error.what();
    }
  }
}

TEST(Mask, HugeWindowsAndSinkCountsAreUnlimited) {
  const std::int64_t huge = std::numeric_limits<std::int64_t>::max();
  const std::vector<std::int64_t> cu{0, 4, 16};
  EXPECT_EQ(Mask(MaskSpec{.causal = true, .window_left = huge}, cu).area(), Mask(MaskSpec{}, cu).area());
  EXPECT_EQ(Mask(MaskSpec{.causal = false, .window_left = 3, .window_right = huge}, cu).area(),
            Mask(MaskSpec{.causal = false, .window_left = 3}, cu).area());
  EXPECT_EQ(Mask(MaskSpec{.causal = true, .window_left = 3, .sink_tokens = huge}, cu).area(), Mask(MaskSpec{}, cu).area());
}

}  // namespace
}  // namespace periplus
