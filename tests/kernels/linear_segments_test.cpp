#include "kernels/cuda/linear_segments.h"

#include <gtest/gtest.h>

// How runs are cut for the blocks of a device; needs none.
namespace periplus::kernels::cuda {
namespace {

/// Every row of the runs is in one segment, in the order of the walk; segments begin at whole chunks of their run.
void expect_covers(const std::vector<UnitRun>& runs, const std::vector<Segment>& segments, bool reverse) {
  std::size_t at = 0;
  for (const UnitRun& run : runs) {
    std::int64_t rows = 0;
    while (rows < run.rows) {
      ASSERT_LT(at, segments.size());
      const Segment& segment = segments[at++];
      const std::int64_t first = segment.row0 - run.row0;
      EXPECT_EQ(reverse ? first + segment.rows : first, reverse ? run.rows - rows : rows);
      EXPECT_EQ(first, segment.chunk0 * kLinearChunk);
      EXPECT_EQ(segment.unit, run.unit);
      EXPECT_EQ(segment.ends, first + segment.rows == run.rows ? 1 : 0);
      EXPECT_EQ(segment.leaves, segment.ends == 1 && run.leaves ? 1 : 0);
      rows += segment.rows;
    }
  }
  EXPECT_EQ(at, segments.size());
}

TEST(LinearSegments, ALongRunIsCutForAllBlocks) {
  const std::vector<UnitRun> runs = {{5, 65536 - 3, 0, true, false}};
  for (const bool reverse : {false, true}) {
    const Segments segments = cut_for_pass(runs, 16, 264, reverse);
    expect_covers(runs, segments.all, reverse);
    EXPECT_EQ(segments.all.size(), 16u);
    ASSERT_EQ(segments.feeding.size(), 15u);
    ASSERT_EQ(segments.folds.size(), 1u);
    EXPECT_EQ(segments.folds[0].first, 0);
    EXPECT_EQ(segments.folds[0].count, 15);
    // A run that only enters takes in a state when it rises.
    const std::int32_t first = reverse ? Segment::kZero : Segment::kIncoming;
    EXPECT_EQ(segments.all[0].before, first);
    EXPECT_EQ(segments.feeding[0].before, first);
    for (std::size_t i = 1; i < segments.all.size(); ++i) EXPECT_EQ(segments.all[i].before, static_cast<std::int32_t>(i) - 1);
    for (std::size_t i = 1; i < segments.feeding.size(); ++i) EXPECT_EQ(segments.feeding[i].before, Segment::kZero);
  }
}

TEST(LinearSegments, ManyRunsStayWhole) {
  std::vector<UnitRun> runs;
  for (std::int64_t document = 0; document < 8; ++document) runs.push_back({document * 8192, 8192, 0});
  const Segments segments = cut_for_pass(runs, 32, 264, false);
  expect_covers(runs, segments.all, false);
  EXPECT_EQ(segments.all.size(), runs.size());
  EXPECT_TRUE(segments.feeding.empty());
  EXPECT_TRUE(segments.folds.empty());
}

TEST(LinearSegments, ElementsComeFromAllOfARunOrNothing) {
  const std::vector<UnitRun> runs = {{0, 0, 0}, {0, 20000, 1}, {20000, 7, 2}};
  const Segments segments = cut_for_elements(runs, 2, 264, true);
  expect_covers(runs, segments.feeding, true);
  ASSERT_EQ(segments.folds.size(), 3u);
  EXPECT_EQ(segments.folds[0].count, 0);
  EXPECT_GT(segments.folds[1].count, 1);
  EXPECT_EQ(segments.folds[2].first, segments.folds[1].count);
  EXPECT_EQ(segments.folds[2].count, 1);
}

TEST(LinearSegments, DecayBlocksFollowTheRuns) {
  const std::vector<UnitRun> runs = {{3, 2 * kDecayBlock + 1, 0, true, true}, {900, 10, 1, false, true}};
  const std::vector<DecayBlock> blocks = decay_blocks(runs);
  ASSERT_EQ(blocks.size(), 4u);
  const std::int32_t begins[] = {0, 0, 0, 1}, firsts[] = {1, 0, 0, 1}, ends[] = {0, 0, 1, 1};
  const std::int64_t rows[] = {kDecayBlock, kDecayBlock, 1, 10};
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    EXPECT_EQ(blocks[i].begins, begins[i]);
    EXPECT_EQ(blocks[i].first, firsts[i]);
    EXPECT_EQ(blocks[i].ends, ends[i]);
    EXPECT_EQ(blocks[i].rows, rows[i]);
  }
  EXPECT_EQ(blocks[1].row0, 3 + kDecayBlock);
  const Segments segments = cut_for_pass(runs, 1, 1, false);
  EXPECT_EQ(segments.all[0].block0, 0);
  EXPECT_EQ(segments.all[1].block0, 3);
}

}  // namespace
}  // namespace periplus::kernels::cuda
