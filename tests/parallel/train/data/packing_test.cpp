#include "parallel/train/data/packing.h"

#include <algorithm>
#include <bit>
#include <map>
#include <numeric>

#include <gtest/gtest.h>

#include "parallel/train/random.h"
#include "runtime/error.h"

namespace periplus::train {
namespace {

std::vector<std::int64_t> random_lengths(std::size_t count, std::int64_t largest, std::uint64_t seed) {
  std::mt19937_64 engine(seed);
  std::vector<std::int64_t> lengths(count);
  // A long tail, as in real text.
  for (auto& length : lengths) length = 1 + static_cast<std::int64_t>(static_cast<double>(largest) * std::pow(uniform(engine), 3));
  return lengths;
}

std::vector<std::vector<Piece>> rows_of(const Packing& packing) {
  std::vector<std::vector<Piece>> rows;
  for (std::int64_t i = 0; i < packing.rows(); ++i) rows.emplace_back(packing.row(i).begin(), packing.row(i).end());
  return rows;
}

/// For every piece the open row with the least room that suffices, by looking at all of them.
std::vector<std::vector<Piece>> naive_best_fit(const std::vector<std::int64_t>& lengths, std::int64_t context) {
  std::vector<Piece> pieces;
  for (std::size_t d = 0; d < lengths.size(); ++d) {
    for (std::int64_t o = 0; o < lengths[d]; o += context)
      pieces.push_back({static_cast<std::int32_t>(d), o, std::min(context, lengths[d] - o)});
  }
  std::stable_sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.length > b.length; });
  std::vector<std::vector<Piece>> rows;
  std::vector<std::int64_t> room;
  for (const Piece& piece : pieces) {
    std::size_t best = rows.size();
    for (std::size_t i = 0; i < rows.size(); ++i) {
      if (room[i] >= piece.length && (best == rows.size() || room[i] < room[best])) best = i;
    }
    if (best == rows.size()) {
      rows.emplace_back();
      room.push_back(context);
    }
    rows[best].push_back(piece);
    room[best] -= piece.length;
  }
  return rows;
}

TEST(Packing, LosesAndDuplicatesNoTokenAndKeepsTheCapacity) {
  for (const std::string_view method : {"best_fit", "concat"}) {
    for (const std::int64_t context : {1, 7, 64, 1000}) {
      SCOPED_TRACE(testing::Message() << method << " context " << context);
      const std::vector<std::int64_t> lengths = random_lengths(300, 500, 3);
      const Packing packing(method, lengths, context);
      std::map<std::int32_t, std::map<std::int64_t, std::int64_t>> seen;  // document -> offset -> length
      for (const auto& row : rows_of(packing)) {
        std::int64_t tokens = 0;
        for (const Piece& piece : row) {
          ASSERT_GT(piece.length, 0);
          tokens += piece.length;
          ASSERT_TRUE(seen[piece.document].emplace(piece.offset, piece.length).second);
        }
        ASSERT_LE(tokens, context);
        ASSERT_GT(tokens, 0);
      }
      for (std::size_t d = 0; d < lengths.size(); ++d) {
        std::int64_t next = 0;
        for (const auto& [offset, length] : seen[static_cast<std::int32_t>(d)]) {
          ASSERT_EQ(offset, next);
          next += length;
        }
        ASSERT_EQ(next, lengths[d]);
      }
    }
  }
}

TEST(Packing, BestFitEqualsLookingAtEveryRow) {
  for (const std::uint64_t seed : {1, 2, 3, 4, 5}) {
    const std::vector<std::int64_t> lengths = random_lengths(200, 150, seed);
    EXPECT_EQ(rows_of(Packing("best_fit", lengths, 64)), naive_best_fit(lengths, 64)) << seed;
  }
}

TEST(Packing, BestFitCutsOnlyDocumentsLongerThanTheContext) {
  const std::vector<std::int64_t> lengths = {10, 64, 65, 200, 1};
  const Packing packing("best_fit", lengths, 64);
  std::vector<int> pieces(lengths.size());
  for (const auto& row : rows_of(packing)) {
    for (const Piece& piece : row) ++pieces[static_cast<std::size_t>(piece.document)];
  }
  EXPECT_EQ(pieces, (std::vector<int>{1, 1, 2, 4, 1}));
  EXPECT_DOUBLE_EQ(packing.statistics().truncated_fraction, 0.4);
}

TEST(Packing, StatisticsOfAHandMadeCase) {
  const std::vector<std::int64_t> lengths = {6, 3, 1};  // context 8: rows {6, 1} and {3}
  const PackingStatistics statistics = Packing("best_fit", lengths, 8).statistics();
  EXPECT_DOUBLE_EQ(statistics.padding_fraction, 1 - 10.0 / 16);
  EXPECT_DOUBLE_EQ(statistics.truncated_fraction, 0);
  EXPECT_DOUBLE_EQ(statistics.attention_share, 0.5 * (37.0 / (8 * 7) + 9.0 / (8 * 3)));
}

TEST(Packing, DecomposeMakesPowersOfTwoThatStartWithTheLargest) {
  const std::vector<std::int64_t> lengths = {100, 15, 16, 200, 64, 300};
  const Packing packing("decompose", lengths, 150);  // pieces of at most 128
  EXPECT_EQ(rows_of(packing), (std::vector<std::vector<Piece>>{{{2, 0, 16}},
                                                               {{0, 64, 32}, {5, 256, 32}},
                                                               {{0, 0, 64}, {3, 128, 64}},
                                                               {{4, 0, 64}},
                                                               {{3, 0, 128}},
                                                               {{5, 0, 128}},
                                                               {{5, 128, 128}}}));
  EXPECT_EQ(std::vector<std::int64_t>(packing.buckets().begin(), packing.buckets().end()), (std::vector<std::int64_t>{1, 2, 4, 7}));
  EXPECT_EQ(packing.longest_piece(), 128);
  EXPECT_NEAR(packing.statistics().dropped_fraction, (4 + 15 + 8 + 12) / 695.0, 1e-12);
}

TEST(Packing, DecomposeCutsEveryDocumentIntoItsBinaryDigits) {
  for (const std::int64_t context : {1, 2, 8, 64, 1000}) {
    const std::vector<std::int64_t> lengths = random_lengths(200, 3000, 9);
    const Packing packing("decompose", lengths, context);
    std::vector<std::vector<Piece>> of(lengths.size());
    for (const auto& row : rows_of(packing)) {
      ASSERT_LE(std::ssize(row) * row.front().length, context);
      for (const Piece& piece : row) {
        ASSERT_EQ(piece.length, row.front().length);
        of[static_cast<std::size_t>(piece.document)].push_back(piece);
      }
    }
    const std::int64_t largest = std::int64_t{1} << (63 - std::countl_zero(static_cast<std::uint64_t>(context)));
    for (std::size_t d = 0; d < lengths.size(); ++d) {
      std::ranges::sort(of[d], {}, &Piece::offset);
      std::int64_t next = 0, last = largest;
      for (const Piece& piece : of[d]) {
        ASSERT_EQ(piece.offset, next);
        ASSERT_TRUE(piece.length < last || (piece.length == largest && last == largest));
        next += piece.length, last = piece.length;
      }
      ASSERT_LT(lengths[d] - next, std::min<std::int64_t>(16, largest));
    }
  }
}

TEST(Packing, RefusesUnknownMethods) {
  const std::vector<std::int64_t> lengths = {1};
  EXPECT_THROW(Packing("first_fit", lengths, 8), InvalidArgument);
  EXPECT_THROW(Packing("best_fit", lengths, 0), InvalidArgument);
  EXPECT_THROW(Packing("decompose", lengths, 64), InvalidArgument);  // nothing is left
}

TEST(RowOrder, VisitsEveryRowOncePerEpochInASeededOrder) {
  constexpr std::int64_t kRows = 17;
  const std::vector<std::int64_t> lengths(kRows, 8);
  const Packing packing("best_fit", lengths, 8);
  RowOrder order(packing, 5), again(packing, 5), other(packing, 6);
  std::vector<std::int64_t> first, second;
  bool other_differs = false;
  for (std::int64_t step = 1; step <= kRows; ++step) {
    first.push_back(order.row_of_step(step));
    second.push_back(order.row_of_step(step + kRows));
    other_differs = other_differs || other.row_of_step(step) != first.back();
  }
  EXPECT_NE(first, second);
  EXPECT_TRUE(other_differs);
  // Any step may be asked for at any time: resuming needs the step number only.
  EXPECT_EQ(again.row_of_step(kRows + 3), second[2]);
  EXPECT_EQ(again.row_of_step(4), first[3]);
  for (auto* epoch : {&first, &second}) {
    std::sort(epoch->begin(), epoch->end());
    for (std::int64_t i = 0; i < kRows; ++i) EXPECT_EQ((*epoch)[static_cast<std::size_t>(i)], i);
  }
}

/// Eight times from the shortest pieces to the longest, every row once.
TEST(RowOrder, GoesThroughTheBucketsOfADecompositionInCycles) {
  const std::vector<std::int64_t> lengths = random_lengths(400, 2000, 4);
  const Packing packing("decompose", lengths, 256);
  RowOrder order(packing, 5), other(packing, 6);
  std::vector<std::int64_t> rows;
  int falls = 0, differences = 0;
  std::int64_t last = 0;
  for (std::int64_t step = 1; step <= packing.rows(); ++step) {
    rows.push_back(order.row_of_step(step));
    if (other.row_of_step(step) != rows.back()) ++differences;
    const std::int64_t size = packing.row(rows.back()).front().length;
    EXPECT_EQ(packing.row(other.row_of_step(step)).front().length, size);
    if (size < last) ++falls;
    last = size;
  }
  EXPECT_EQ(falls, 7);
  EXPECT_GT(differences, packing.rows() / 2);
  EXPECT_NE(order.row_of_step(packing.rows() + 1), rows.front());
  std::ranges::sort(rows);
  for (std::int64_t i = 0; i < packing.rows(); ++i) EXPECT_EQ(rows[static_cast<std::size_t>(i)], i);
}

}  // namespace
}  // namespace periplus::train
