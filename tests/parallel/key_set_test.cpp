#include "parallel/key_set.h"

#include <random>

#include <gtest/gtest.h>

#include "parallel/balanced_layout.h"
#include "tests/parallel/plan/plan_cases.h"

namespace periplus {
namespace {

using test::Lengths;

const std::vector<MaskSpec> kMasks{{true, -1, -1, 0}, {false, -1, -1, 0}, {true, 9, -1, 0}, {true, 2, -1, 0},
                                   {true, 6, -1, 3},  {false, 5, 4, 2},   {false, 0, 7, 0}};

/// The same from all bands.
RowRange rows_with_bands(const SequenceLayout& layout, const Mask& mask, int q_rank, const std::vector<int>& key_ranks) {
  std::vector<Band> bands;
  for (const int rank : key_ranks) append_bands_between(layout, mask, q_rank, rank, bands);
  RowRange rows;
  for (const Band& band : bands) rows = hull(rows, {band.q0, band.q1});
  return rows;
}

/// Grows a set by ranks in two orders and asks after each.
void expect_exact(const SequenceLayout& layout, const Mask& mask) {
  const int ranks = layout.ranks();
  KeySet keys(layout, mask);
  for (const int stride : {ranks - 1, 3}) {
    keys.clear();
    std::vector<int> added;
    for (int i = 0; i < ranks; ++i) {
      const int rank = (2 + i * stride) % ranks;
      if (std::ranges::find(added, rank) != added.end()) continue;
      keys.add(rank);
      added.push_back(rank);
      for (int q_rank = 0; q_rank < ranks; ++q_rank)
        ASSERT_EQ(keys.rows_that_see(q_rank), rows_with_bands(layout, mask, q_rank, added)) << "rank " << q_rank << ", " << added.size();
    }
  }
}

TEST(KeySet, FindsTheRowsThatTheBandsHave) {
  for (const int ranks : {1, 2, 5, 8}) {
    for (const LayoutKind kind : test::kLayoutKinds) {
      for (const Lengths& cu : std::vector<Lengths>{{0, 7}, {0, 203}, {0, 40, 41, 42, 42, 47, 150}, {0}, {0, 0, 5, 5, 90}}) {
        for (const MaskSpec& mask : kMasks) {
          SCOPED_TRACE(test::describe(kind, ranks, cu, mask, Pass::forward));
          expect_exact(make_layout(kind, ranks, Mask(mask, cu)), Mask(mask, cu));
        }
      }
    }
  }
}

TEST(KeySet, TakesMixedStridesAndScatteredChunks) {
  const Lengths cu{0, 11, 24};
  const std::vector<Segment> mixed{{0, 0, 0, 4, 2}, {0, 4, 20, 4},    {1, 0, 1, 4, 2}, {1, 4, 8, 3, 5},
                                   {2, 0, 9, 4},    {2, 4, 14, 2, 5}, {2, 6, 15, 3}};
  // Chunks of three tokens dealt out at random, so that runs of a set join and do not join.
  std::mt19937 random(5);
  std::vector<Segment> dealt;
  std::vector<std::int64_t> filled(6, 0);
  const Lengths two{0, 50, 90};
  for (std::int64_t row = 0; row < 90; row += 3) {
    const int rank = static_cast<int>(random() % 6);
    dealt.push_back({rank, filled[static_cast<std::size_t>(rank)], row, 3});
    filled[static_cast<std::size_t>(rank)] += 3;
  }
  for (const MaskSpec& mask : kMasks) {
    expect_exact(SequenceLayout::from_segments(3, cu, mixed), Mask(mask, cu));
    expect_exact(SequenceLayout::from_segments(6, two, dealt), Mask(mask, two));
  }
}

}  // namespace
}  // namespace periplus
