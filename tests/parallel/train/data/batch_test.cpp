#include "parallel/train/data/batch.h"

#include <gtest/gtest.h>

#include "kernels/transformer.h"
#include "runtime/error.h"
#include "tests/parallel/train/scenario.h"

namespace periplus::train {
namespace {

constexpr auto kNone = kernels::kIgnoreLabel;

TEST(Batch, LabelsCrossShardBordersButNotDocumentBorders) {
  // algorithms.md 9: zigzag, 2 ranks, one document of 8: rank 0 owns globals 0,1,6,7 and its second label lives on rank 1.
  const std::vector<std::int32_t> row = {10, 11, 12, 13, 14, 15, 16, 17};
  const std::vector<std::int64_t> whole = {0, 8};
  const Batch batch = shard_row(row, whole, LayoutKind::zigzag, 2, 0);
  EXPECT_EQ(batch.tokens, (std::vector<std::int32_t>{10, 11, 16, 17}));
  EXPECT_EQ(batch.labels, (std::vector<std::int32_t>{11, 12, 17, kNone}));
  EXPECT_EQ(batch.positions, (std::vector<std::int64_t>{0, 1, 6, 7}));
  EXPECT_EQ(batch.valid_labels, 7);

  const std::vector<std::int64_t> documents = {0, 3, 4, 8};
  const Batch second = shard_row(row, documents, LayoutKind::contiguous, 2, 0);
  EXPECT_EQ(second.labels, (std::vector<std::int32_t>{11, 12, kNone, kNone}));
  EXPECT_EQ(second.positions, (std::vector<std::int64_t>{0, 1, 2, 0}));
  EXPECT_EQ(second.valid_labels, 5);
}

TEST(Batch, TogetherTheRanksHoldTheRowWhateverTheirNumber) {
  const std::vector<std::int64_t> cu_seqlens = {0, 1, 8, 41, 43, 60};
  std::vector<std::int32_t> row(60);
  for (std::size_t i = 0; i < row.size(); ++i) row[i] = static_cast<std::int32_t>(i);
  const Batch whole = shard_row(row, cu_seqlens, LayoutKind::contiguous, 1, 0);
  for (const LayoutKind kind : {LayoutKind::contiguous, LayoutKind::zigzag, LayoutKind::striped, LayoutKind::document_zigzag}) {
    for (const int ranks : {1, 2, 3, 5, 8}) {
      std::vector<int> seen(row.size());
      for (int rank = 0; rank < ranks; ++rank) {
        const Batch batch = shard_row(row, cu_seqlens, kind, ranks, rank);
        EXPECT_EQ(batch.valid_labels, whole.valid_labels);
        for (std::size_t i = 0; i < batch.tokens.size(); ++i) {
          const auto global = static_cast<std::size_t>(batch.tokens[i]);
          ++seen[global];
          EXPECT_EQ(batch.labels[i], whole.labels[global]);
          EXPECT_EQ(batch.positions[i], whole.positions[global]);
        }
      }
      EXPECT_EQ(seen, std::vector<int>(row.size(), 1)) << to_string(kind) << " ranks " << ranks;
    }
  }
}

TEST(Batch, TakesTheCallersLayout) {
  const std::vector<std::int32_t> row = {10, 11, 12, 13, 14, 15};
  const std::vector<std::int64_t> cu_seqlens = {0, 2, 6};
  const SequenceLayout layout = SequenceLayout::from_segments(
      2, cu_seqlens, {{.rank = 0, .local0 = 0, .global0 = 5, .length = 1}, {.rank = 1, .local0 = 0, .global0 = 0, .length = 5}});
  const Batch first = shard_row(row, layout, 0), second = shard_row(row, layout, 1);
  EXPECT_EQ(first.tokens, (std::vector<std::int32_t>{15}));
  EXPECT_EQ(first.labels, (std::vector<std::int32_t>{kNone}));
  EXPECT_EQ(second.labels, (std::vector<std::int32_t>{11, kNone, 13, 14, 15}));
  EXPECT_EQ(second.positions, (std::vector<std::int64_t>{0, 1, 0, 1, 2}));
  EXPECT_EQ(first.valid_labels, 4);
  EXPECT_EQ(first.layout.digest(), layout.digest());
}

TEST(Batch, RefusesARowOfAnotherLength) {
  const std::vector<std::int64_t> cu_seqlens = {0, 8};
  for (const std::size_t tokens : {0U, 7U, 9U}) {
    EXPECT_THROW(shard_row(std::vector<std::int32_t>(tokens), cu_seqlens, LayoutKind::contiguous, 1, 0), InvalidArgument) << tokens;
  }
}

TEST(Batch, ReadsThePiecesOfARow) {
  const TemporaryFolder folder;
  write_text(folder / "text/a", "abcdef");
  write_text(folder / "text/b", "xyz");
  const std::vector<std::string> paths = {(folder / "text").string()};
  const Corpus corpus(paths);
  const std::vector<Piece> pieces = {{1, 0, 3}, {0, 4, 2}};
  const Batch batch = make_batch(corpus, pieces, LayoutKind::contiguous, 1, 0);
  EXPECT_EQ(batch.tokens, (std::vector<std::int32_t>{'x', 'y', 'z', 'e', 'f'}));
  EXPECT_EQ(batch.labels, (std::vector<std::int32_t>{'y', 'z', kNone, 'f', kNone}));
  EXPECT_EQ(batch.positions, (std::vector<std::int64_t>{0, 1, 2, 0, 1}));
}

}  // namespace
}  // namespace periplus::train
