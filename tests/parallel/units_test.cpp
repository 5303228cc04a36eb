#include "parallel/units.h"

#include <algorithm>
#include <string>

#include <fmt/format.h>
#include <gtest/gtest.h>

namespace periplus {
namespace {

using Lengths = std::vector<std::int64_t>;
using Runs = std::vector<kernels::UnitRun>;
using Folds = std::vector<kernels::UnitFold>;

Units units_of(LayoutKind kind, int ranks, const Lengths& cu) { return Units(SequenceLayout::make(kind, ranks, cu)); }

/// rank:row0+rows@global0 of every unit.
std::string text_of(const Units& units) {
  std::string text;
  for (const Unit& u : units.all()) text += fmt::format("{}{}:{}+{}@{}", text.empty() ? "" : " ", u.rank, u.row0, u.rows, u.global0);
  return text;
}

TEST(Units, ContiguousRanksHaveOneUnitEach) {
  const Units units = units_of(LayoutKind::contiguous, 3, {0, 4, 12});
  EXPECT_EQ(text_of(units), "0:0+4@0 1:0+4@4 2:0+4@8");
  EXPECT_EQ(units.most_per_rank(), 1);
}

TEST(Units, ZigzagRanksHaveTwoButTheLastHasOne) {
  const Units units = units_of(LayoutKind::zigzag, 3, {0, 12});
  EXPECT_EQ(text_of(units), "0:0+2@0 1:0+2@2 2:0+4@4 1:2+2@8 0:2+2@10");
  EXPECT_EQ(Lengths(units.of_rank(0).begin(), units.of_rank(0).end()), (Lengths{0, 4}));
  EXPECT_EQ(units.most_per_rank(), 2);
}

TEST(Units, StridedSegmentsHaveAUnitPerToken) {
  EXPECT_EQ(text_of(units_of(LayoutKind::striped, 2, {0, 4})), "0:0+1@0 1:0+1@1 0:1+1@2 1:1+1@3");
}

TEST(Units, RanksWithoutTokensHaveNone) {
  const Units units = units_of(LayoutKind::contiguous, 4, {0, 2});
  EXPECT_EQ(units.count(), 2);
  EXPECT_TRUE(units.of_rank(0).empty());
  EXPECT_TRUE(units.runs_of(0).empty());
  EXPECT_EQ(units_of(LayoutKind::zigzag, 2, {0}).count(), 0);
}

TEST(Units, RunsAreCutAtDocumentsAndEmptyDocumentsAreSkipped) {
  const Units units = units_of(LayoutKind::contiguous, 2, {0, 2, 2, 3, 8, 10});
  EXPECT_EQ(units.runs_of(0), (Runs{{0, 2, 0, false, false}, {2, 1, 0, false, false}, {3, 2, 0, false, true}}));
  EXPECT_EQ(units.runs_of(1), (Runs{{0, 3, 0, true, false}, {3, 2, 0, false, true}}));
}

TEST(Units, ADocumentThatStartsWithTheUnitDoesNotEnter) {
  const Units units = units_of(LayoutKind::contiguous, 2, {0, 4, 8});
  EXPECT_EQ(units.runs_of(1), (Runs{{0, 4, 0, false, true}}));
  EXPECT_EQ(units.incoming_of(1), (Folds{{0, 1, 1}}));
  EXPECT_EQ(units.outgoing_of(0), (Folds{{0, 1, 1}}));
}

TEST(Units, RunsOfACallersLayoutAreInTheOrderOfTheirRows) {
  const Lengths cu{0, 8};
  const Units units(SequenceLayout::from_segments(2, cu, {{0, 0, 6, 2}, {0, 2, 0, 2}, {1, 0, 2, 4}}));
  EXPECT_EQ(text_of(units), "0:2+2@0 1:0+4@2 0:0+2@6");
  EXPECT_EQ(units.runs_of(0), (Runs{{0, 2, 1, true, true}, {2, 2, 0, false, true}}));
  EXPECT_EQ(units.incoming_of(0), (Folds{{0, 0, 0}, {1, 0, 2}}));
}

TEST(Units, FoldsReachFromTheDocumentsBeginningToItsEnd) {
  // Units of 3 tokens; documents [0, 4), [4, 11), [11, 12).
  const Units units = units_of(LayoutKind::contiguous, 4, {0, 4, 11, 12});
  EXPECT_EQ(units.incoming_of(1), (Folds{{0, 0, 1}}));
  EXPECT_EQ(units.incoming_of(2), (Folds{{0, 1, 2}}));
  EXPECT_EQ(units.incoming_of(3), (Folds{{0, 1, 3}}));
  EXPECT_EQ(units.outgoing_of(0), (Folds{{0, 1, 2}}));
  EXPECT_EQ(units.outgoing_of(1), (Folds{{0, 2, 4}}));
  EXPECT_EQ(units.outgoing_of(3), (Folds{{0, 4, 4}}));
}

/// Token by token: unit v is in the fold of u if the document at u's border has tokens in both and v lies on its side.
TEST(Units, FoldsAndRunsAgreeWithTheTokens) {
  for (const LayoutKind kind : {LayoutKind::contiguous, LayoutKind::zigzag, LayoutKind::striped, LayoutKind::document_zigzag}) {
    for (const Lengths& cu : {Lengths{0, 37}, Lengths{0, 1, 2, 2, 3, 20, 41}, Lengths{0, 5, 10, 15, 20}}) {
      for (const int ranks : {1, 2, 3, 5, 8}) {
        const SequenceLayout layout = SequenceLayout::make(kind, ranks, cu);
        const Units units(layout);
        std::vector<std::int64_t> unit_of(static_cast<std::size_t>(cu.back()));
        for (std::int64_t u = 0; u < units.count(); ++u) {
          const Unit& unit = units.all()[static_cast<std::size_t>(u)];
          for (std::int64_t t = 0; t < unit.rows; ++t) {
            unit_of[static_cast<std::size_t>(unit.global0 + t)] = u;
            EXPECT_EQ(layout.global_rows(unit.rank)[static_cast<std::size_t>(unit.row0 + t)], unit.global0 + t);
          }
        }
        const auto document = [&](std::int64_t token) { return std::ranges::upper_bound(cu, token) - cu.begin(); };
        for (int rank = 0; rank < ranks; ++rank) {
          const auto own = units.of_rank(rank);
          std::int64_t rows = 0;
          for (const kernels::UnitRun& run : units.runs_of(rank)) {
            const Unit& unit = units.all()[static_cast<std::size_t>(own[static_cast<std::size_t>(run.unit)])];
            const std::int64_t first = unit.global0 + run.row0 - unit.row0, last = first + run.rows - 1;
            EXPECT_EQ(run.row0, rows);
            rows += run.rows;
            EXPECT_EQ(document(first), document(last));
            EXPECT_EQ(run.enters, run.row0 == unit.row0 && first > 0 && document(first - 1) == document(first));
            EXPECT_EQ(run.leaves, run.row0 + run.rows == unit.row0 + unit.rows);
          }
          EXPECT_EQ(rows, layout.rows_of(rank));
          const auto incoming = units.incoming_of(rank), outgoing = units.outgoing_of(rank);
          ASSERT_EQ(incoming.size(), own.size());
          for (std::size_t i = 0; i < own.size(); ++i) {
            const Unit& unit = units.all()[static_cast<std::size_t>(own[i])];
            std::int64_t first = own[i], last = own[i];
            for (std::int64_t t = 0; t < cu.back(); ++t) {
              const std::int64_t u = unit_of[static_cast<std::size_t>(t)];
              if (document(t) == document(unit.global0)) first = std::min(first, u);
              if (document(t) == document(unit.global0 + unit.rows - 1)) last = std::max(last, u);
            }
            EXPECT_EQ(incoming[i], (kernels::UnitFold{static_cast<std::int64_t>(i), first, own[i]}));
            EXPECT_EQ(outgoing[i], (kernels::UnitFold{static_cast<std::int64_t>(i), own[i] + 1, last + 1}));
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace periplus
