// Names for rows: equal rows are known as equal, whatever they are called, and moves keep names few.
#include "parallel/plan/row_orders.h"

#include <algorithm>
#include <deque>
#include <numeric>
#include <random>
#include <vector>

#include <gtest/gtest.h>

namespace periplus::plan {
namespace {

using Rows = std::vector<NamedRows>;

std::vector<std::int64_t> global_rows(const RowOrders& orders, std::span<const NamedRows> rows) {
  std::vector<std::int64_t> all;
  for (const NamedRows& part : rows) {
    EXPECT_EQ(part.at, static_cast<std::int64_t>(all.size()));
    orders.for_runs(part.order, part.first, part.rows, [&](std::int64_t, const StridedRows& run) {
      for (std::int64_t t = 0; t < run.count; ++t) all.push_back(run.first + t * run.stride);
    });
  }
  return all;
}

Rows all_ranks(const SequenceLayout& layout) {
  Rows rows;
  std::int64_t at = 0;
  for (int rank = 0; rank < layout.ranks(); at += layout.rows_of(rank++)) rows.push_back({at, layout.rows_of(rank), rank, 0});
  return rows;
}

/// Cuts `rows` rows into runs and puts those in another order.
std::vector<RowMove> random_moves(std::int64_t rows, std::mt19937_64& random) {
  std::vector<RowMove> moves;
  for (std::int64_t at = 0; at < rows; at += moves.back().rows)
    moves.push_back(row_move(at, 0, std::min<std::int64_t>(rows - at, 1 + static_cast<std::int64_t>(random() % 9))));
  std::vector<RowMove*> order;
  for (RowMove& move : moves) order.push_back(&move);
  std::ranges::shuffle(order, random);
  std::int64_t to = 0;
  for (RowMove* move : order) *move = row_move(move->from, to, move->rows), to += move->rows;
  return moves;
}

std::vector<RowMove> inverse(std::vector<RowMove> moves) {
  for (RowMove& move : moves) std::swap(move.from, move.to);
  return moves;
}

TEST(RowOrders, MovesBringEveryRowToItsPlaceAndBack) {
  std::mt19937_64 random(5);
  const std::vector<std::int64_t> cu{0, 7, 8, 40, 101};
  for (const LayoutKind kind : {LayoutKind::contiguous, LayoutKind::zigzag, LayoutKind::striped, LayoutKind::document_zigzag}) {
    const SequenceLayout layout = SequenceLayout::make(kind, 5, cu);
    RowOrders orders(layout);
    std::deque<std::vector<RowMove>> kept;
    const Rows before = all_ranks(layout);
    for (int i = 0; i < 20; ++i) {
      const std::vector<RowMove>& moves = kept.emplace_back(random_moves(layout.tokens(), random));
      const std::vector<RowMove>& back = kept.emplace_back(inverse(moves));
      const std::vector<std::int64_t> rows = global_rows(orders, before);
      std::vector<std::int64_t> expected(rows.size());
      for (const RowMove& move : moves) std::copy_n(rows.begin() + move.from, move.rows, expected.begin() + move.to);
      const auto there = orders.moved(before, moves);
      ASSERT_EQ(global_rows(orders, there), expected);
      const auto here = orders.moved(Rows(there.begin(), there.end()), back);
      ASSERT_EQ(global_rows(orders, here), rows);
      // Strided rows get no names by rank back, but are known as the same rows.
      if (kind == LayoutKind::striped) {
        ASSERT_EQ(here.size(), 1u);
        for (const NamedRows& part : before)
          ASSERT_TRUE(orders.same_rows(part.order, part.first, here[0].order, here[0].first + part.at, part.rows));
      } else {
        ASSERT_EQ(Rows(here.begin(), here.end()), before);
      }
    }
  }
}

TEST(RowOrders, RowsOfTwoOrdersAreComparedRowByRow) {
  const SequenceLayout layout = SequenceLayout::make(LayoutKind::contiguous, 2, std::vector<std::int64_t>{0, 10});
  RowOrders orders(layout);
  // 0 1 2 3 4 | 5 6 7 8 9 becomes 1 0 3 2 5 4 7 6 9 8.
  std::vector<RowMove> moves;
  for (std::int64_t row = 0; row < 10; ++row) moves.push_back(row_move(row, row ^ 1, 1));
  const NamedRows pairs = orders.moved(all_ranks(layout), moves).front();
  ASSERT_EQ(pairs.rows, 10);
  ASSERT_FALSE(orders.is_rank(pairs.order));
  EXPECT_TRUE(orders.same_rows(pairs.order, 0, 0, 1, 1));
  EXPECT_TRUE(orders.same_rows(1, 0, pairs.order, 4, 1));
  EXPECT_FALSE(orders.same_rows(pairs.order, 0, 0, 0, 1));
  EXPECT_FALSE(orders.same_rows(pairs.order, 0, 0, 0, 5));
  EXPECT_FALSE(orders.same_rows(pairs.order, 0, 0, 1, 2));
  EXPECT_FALSE(orders.same_rows(0, 0, 1, 0, 5));
}

TEST(RowOrders, AMoveWithAStrideIsTheMovesOfItsRows) {
  const SequenceLayout layout = SequenceLayout::make(LayoutKind::striped, 3, std::vector<std::int64_t>{0, 10});
  RowOrders orders(layout);
  const std::vector<RowMove> stripes{{0, 0, 4, 1, 3}, {4, 1, 3, 1, 3}, {7, 2, 3, 1, 3}}, rows = without_strides(stripes);
  ASSERT_EQ(rows.size(), 10u);
  const auto there = orders.moved(all_ranks(layout), stripes), by_row = orders.moved(all_ranks(layout), rows);
  EXPECT_EQ(Rows(there.begin(), there.end()), Rows(by_row.begin(), by_row.end()));
  std::vector<std::int64_t> sequence(10);
  std::iota(sequence.begin(), sequence.end(), 0);
  EXPECT_EQ(global_rows(orders, there), sequence);
}

TEST(RowOrders, EqualSequencesAreOneOrder) {
  const SequenceLayout layout = SequenceLayout::make(LayoutKind::zigzag, 2, std::vector<std::int64_t>{0, 16});
  RowOrders orders(layout);
  // Rank 0 has rows 0-3 and 12-15, rank 1 has 4-11.
  const std::vector<RowMove> into{{0, 0, 4}, {4, 12, 4}, {8, 4, 8}}, split{{0, 0, 4}, {4, 12, 4}, {8, 4, 3}, {11, 7, 5}};
  const auto once = orders.moved(all_ranks(layout), into), again = orders.moved(all_ranks(layout), split);
  EXPECT_EQ(Rows(once.begin(), once.end()), Rows(again.begin(), again.end()));
  EXPECT_EQ(once.size(), 1u);
}

}  // namespace
}  // namespace periplus::plan
