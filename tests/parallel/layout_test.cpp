#include "parallel/layout.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <set>
#include <string>

#include <gtest/gtest.h>

#include "parallel/mask.h"
#include "runtime/error.h"

namespace periplus {
namespace {

using Lengths = std::vector<std::int64_t>;

constexpr LayoutKind kKinds[] = {LayoutKind::contiguous, LayoutKind::zigzag, LayoutKind::striped, LayoutKind::document_zigzag};
constexpr int kRanks[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 16};

Lengths borders(const Lengths& lengths) {
  Lengths cu{0};
  for (const std::int64_t length : lengths) cu.push_back(cu.back() + length);
  return cu;
}

/// cu_seqlens of every shape that has ever been awkward: nothing, one token, fewer tokens than ranks, empty documents.
std::vector<Lengths> packings() {
  std::vector<Lengths> all{{0}};
  for (const Lengths& lengths : std::vector<Lengths>{
           {0}, {1}, {7}, {65}, {1000}, {0, 0, 5, 0, 7, 0}, Lengths(40, 1), {3, 2, 1, 94}, {1, 1, 1, 200, 1}, {5, 5, 5, 5, 5, 5, 5}})
    all.push_back(borders(lengths));
  std::mt19937_64 random(3);
  for (int i = 0; i < 12; ++i) {
    Lengths lengths;
    for (std::uint64_t n = 1 + random() % 9; n > 0; --n) lengths.push_back(static_cast<std::int64_t>(random() % (i % 2 ? 12 : 150)));
    all.push_back(borders(lengths));
  }
  return all;
}

template <class Fn>
void for_all_layouts(Fn&& fn) {
  for (const LayoutKind kind : kKinds) {
    for (const int ranks : kRanks) {
      for (const Lengths& cu : packings()) {
        SCOPED_TRACE(std::string(to_string(kind)) + ", " + std::to_string(ranks) + " ranks, cu_seqlens " + testing::PrintToString(cu));
        fn(SequenceLayout::make(kind, ranks, cu));
      }
    }
  }
}

TEST(SequenceLayout, RefusesMoreTokensThanPairsCanBeCountedOf) {
  for (const LayoutKind kind : kKinds) {
    EXPECT_EQ(SequenceLayout::make(kind, 4, Lengths{0, kMostTokens}).tokens(), kMostTokens);
    EXPECT_THROW(SequenceLayout::make(kind, 4, Lengths{0, kMostTokens + 1}), InvalidArgument);
    EXPECT_THROW(SequenceLayout::make(kind, 4, Lengths{0, 99'999'999'999'999}), InvalidArgument);
  }
}

TEST(SequenceLayout, HoldsEveryGlobalRowOnceAndLocalRowsWithoutGaps) {
  for_all_layouts([](const SequenceLayout& layout) {
    std::vector<int> seen(static_cast<std::size_t>(layout.tokens()), 0);
    for (int r = 0; r < layout.ranks(); ++r) {
      std::int64_t next = 0;
      for (const Segment& s : layout.segments_of(r)) {
        ASSERT_EQ(s.rank, r);
        ASSERT_EQ(s.local0, next);
        ASSERT_GT(s.length, 0);
        next += s.length;
      }
      ASSERT_EQ(next, layout.rows_of(r));
      const auto rows = layout.global_rows(r);
      ASSERT_EQ(static_cast<std::int64_t>(rows.size()), next);
      for (const std::int64_t row : rows) ++seen.at(static_cast<std::size_t>(row));
    }
    ASSERT_EQ(std::count(seen.begin(), seen.end(), 1), layout.tokens());
  });
}

TEST(SequenceLayout, SegmentsStayInsideOneDocumentAndPositionsRestartThere) {
  for_all_layouts([](const SequenceLayout& layout) {
    for (int r = 0; r < layout.ranks(); ++r) {
      const auto rows = layout.global_rows(r), positions = layout.positions(r);
      for (const Segment& s : layout.segments_of(r)) {
        const auto d = static_cast<std::size_t>(s.document);
        ASSERT_GE(s.global0, layout.cu_seqlens()[d]);
        ASSERT_LE(s.global_end(), layout.cu_seqlens()[d + 1]);
        for (std::int64_t t = 0; t < s.length; ++t) {
          const auto local = static_cast<std::size_t>(s.local0 + t);
          ASSERT_EQ(rows[local], s.global0 + t * s.stride);
          ASSERT_EQ(positions[local], rows[local] - layout.cu_seqlens()[d]);
        }
      }
    }
  });
}

TEST(SequenceLayout, SegmentsByGlobalAreTheSameOnesSorted) {
  for_all_layouts([](const SequenceLayout& layout) {
    for (int r = 0; r < layout.ranks(); ++r) {
      const auto local = layout.segments_of(r), global = layout.segments_by_global(r);
      ASSERT_EQ(local.size(), global.size());
      std::set<std::int64_t> starts;
      for (const Segment& s : local) starts.insert(s.global0);
      auto start = starts.begin();
      for (const Segment& s : global) ASSERT_EQ(s.global0, *start++);
    }
  });
}

TEST(SequenceLayout, RowsOfRanksDifferByAtMostTwoInLayoutsThatIgnoreDocuments) {
  for_all_layouts([](const SequenceLayout& layout) {
    if (layout.kind() == LayoutKind::document_zigzag) return;
    std::int64_t least = layout.tokens(), most = 0;
    for (int r = 0; r < layout.ranks(); ++r) {
      least = std::min(least, layout.rows_of(r));
      most = std::max(most, layout.rows_of(r));
    }
    ASSERT_LE(most - least, layout.kind() == LayoutKind::zigzag ? 2 : 1);
  });
}

TEST(SequenceLayout, WorkedExamplesOfEightTokens) {
  const Lengths cu{0, 8};
  const auto rows = [&](LayoutKind kind, int rank) { return SequenceLayout::make(kind, 2, cu).global_rows(rank); };
  EXPECT_EQ(rows(LayoutKind::zigzag, 0), (Lengths{0, 1, 6, 7}));
  EXPECT_EQ(rows(LayoutKind::zigzag, 1), (Lengths{2, 3, 4, 5}));
  EXPECT_EQ(SequenceLayout::make(LayoutKind::zigzag, 2, cu).positions(0), (Lengths{0, 1, 6, 7}));
  EXPECT_EQ(rows(LayoutKind::contiguous, 1), (Lengths{4, 5, 6, 7}));
  EXPECT_EQ(rows(LayoutKind::striped, 1), (Lengths{1, 3, 5, 7}));
  // All early halves stand before all late ones.
  EXPECT_EQ(SequenceLayout::make(LayoutKind::document_zigzag, 2, Lengths{0, 8, 12}).global_rows(0), (Lengths{0, 1, 8, 6, 7, 11}));
}

double imbalance(const SequenceLayout& layout, const Mask& mask) {
  std::vector<std::int64_t> areas;
  for (int r = 0; r < layout.ranks(); ++r) areas.push_back(area_of_rank(layout, mask, r));
  const double mean = static_cast<double>(std::accumulate(areas.begin(), areas.end(), std::int64_t{0})) / layout.ranks();
  return static_cast<double>(*std::max_element(areas.begin(), areas.end())) / mean;
}

TEST(SequenceLayout, DocumentZigzagBalancesCausalWorkOfALongTailedMix) {
  std::mt19937_64 random(11);
  std::lognormal_distribution<double> length(5, 1.5);
  for (const int ranks : {2, 3, 8, 16}) {
    Lengths lengths;
    for (int d = 0; d < 100; ++d) lengths.push_back(1 + static_cast<std::int64_t>(length(random)));
    const Lengths cu = borders(lengths);
    const Mask mask({}, cu);
    EXPECT_LE(imbalance(SequenceLayout::make(LayoutKind::document_zigzag, ranks, cu), mask), 1.1) << ranks << " ranks";
    EXPECT_GT(imbalance(SequenceLayout::make(LayoutKind::contiguous, ranks, cu), mask), 1.1) << "the mix is too even to tell";
  }
}

TEST(SequenceLayout, DocumentZigzagSpreadsOneTokenDocumentsOverRanks) {
  for (const int ranks : {2, 3, 4, 8}) {
    Lengths cu(static_cast<std::size_t>(16 * ranks) + 1);
    std::iota(cu.begin(), cu.end(), 0);
    const SequenceLayout layout = SequenceLayout::make(LayoutKind::document_zigzag, ranks, cu);
    for (int r = 0; r < ranks; ++r) EXPECT_EQ(layout.rows_of(r), 16) << "rank " << r << " of " << ranks;
  }
}

TEST(SequenceLayout, FromSegmentsTakesAnyOrderAndSplitsAtBorders) {
  const Lengths cu{0, 5, 5, 12};
  const SequenceLayout layout =
      SequenceLayout::from_segments(2, cu, {{1, 2, 1, 3, 4}, {0, 0, 0, 6, 2}, {1, 0, 3, 1, 1}, {1, 1, 7, 1, 9}, {1, 5, 11, 1, 1}});
  EXPECT_EQ(layout.kind(), LayoutKind::custom);
  EXPECT_EQ(layout.global_rows(0), (Lengths{0, 2, 4, 6, 8, 10}));
  EXPECT_EQ(layout.global_rows(1), (Lengths{3, 7, 1, 5, 9, 11}));
  ASSERT_EQ(layout.segments_of(0).size(), 2u);
  EXPECT_EQ(layout.segments_of(0)[0].length, 3);
  EXPECT_EQ(layout.segments_of(0)[1].document, 2);
  EXPECT_EQ(layout.positions(0), (Lengths{0, 2, 4, 1, 3, 5}));
  EXPECT_EQ(layout.positions(1), (Lengths{3, 2, 1, 0, 4, 6}));
}

TEST(SequenceLayout, FromSegmentsRebuildsEveryKindWithAnEqualDigest) {
  for_all_layouts([](const SequenceLayout& layout) {
    std::vector<Segment> segments;
    for (int r = 0; r < layout.ranks(); ++r) segments.insert(segments.end(), layout.segments_of(r).begin(), layout.segments_of(r).end());
    const SequenceLayout again = SequenceLayout::from_segments(layout.ranks(), layout.cu_seqlens(), segments);
    ASSERT_EQ(again.digest(), layout.digest());
    for (int r = 0; r < layout.ranks(); ++r) ASSERT_EQ(again.global_rows(r), layout.global_rows(r));
  });
}

template <class Fn>
std::string error_of(Fn&& fn) {
  try {
    fn();
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "no error";
}

void expect_error(int ranks, const Lengths& cu, std::vector<Segment> segments, std::string_view part) {
  const std::string message = error_of([&] { SequenceLayout::from_segments(ranks, cu, std::move(segments)); });
  EXPECT_NE(message.find(part), std::string::npos) << message;
}

TEST(SequenceLayoutErrors, FromSegmentsNamesWhatIsWrong) {
  const Lengths cu{0, 4};
  expect_error(2, cu, {{2, 0, 0, 4}}, "segment (rank 2, global0 0, length 4, stride 1) does not fit 2 ranks and 4 tokens");
  expect_error(2, cu, {{-1, 0, 0, 4}}, "rank -1");
  expect_error(1, cu, {{0, 0, 1, 4}}, "global0 1, length 4");
  expect_error(1, cu, {{0, 0, -1, 4}}, "global0 -1");
  expect_error(1, cu, {{0, 0, 0, -4}}, "length -4");
  expect_error(1, cu, {{0, 0, 0, 3, 2}}, "stride 2");
  expect_error(1, cu, {{0, 0, 0, 4, 0}}, "stride 0");
  expect_error(1, cu, {{0, 0, 0, 2}, {0, 3, 2, 2}}, "rank 0 must follow each other, but a segment starts at 3 where 2 is next");
  expect_error(1, cu, {{0, 0, 0, 3}, {0, 3, 2, 2}}, "global row 2 stands in two segments");
  expect_error(2, cu, {{0, 0, 0, 3}}, "segments hold 3 of 4 rows");
}

TEST(SequenceLayoutErrors, ArgumentsAreChecked) {
  const auto make = [](int ranks, const Lengths& cu, LayoutKind kind = LayoutKind::zigzag) {
    return error_of([&] { SequenceLayout::make(kind, ranks, cu); });
  };
  EXPECT_NE(make(0, {0, 4}).find("0 ranks"), std::string::npos);
  EXPECT_NE(make(2, {}).find("must start with 0"), std::string::npos);
  EXPECT_NE(make(2, {1, 4}).find("must start with 0"), std::string::npos);
  EXPECT_NE(make(2, {0, 6, 4}).find("entry 2 is 4 after 6"), std::string::npos);
  EXPECT_NE(make(2, {0, 4}, LayoutKind::custom).find("use from_segments"), std::string::npos);
  for (const LayoutKind kind : kKinds) EXPECT_EQ(layout_kind_from_string(to_string(kind)), kind);
  for (const char* name : {"spiral", "custom"}) {
    const std::string message = error_of([&] { layout_kind_from_string(name); });
    EXPECT_NE(message.find("use contiguous, zigzag, striped, document_zigzag or balanced"), std::string::npos) << message;
  }
}

TEST(SequenceLayoutErrors, RanksThatItDoesNotHaveAreNamed) {
  const SequenceLayout layout = SequenceLayout::make(LayoutKind::zigzag, 3, Lengths{0, 8});
  for (const int rank : {-1, 3, 7}) {
    const std::string expected = "rank " + std::to_string(rank) + " is not one of the 3 ranks";
    for (const std::string& message :
         {error_of([&] { (void)layout.rows_of(rank); }), error_of([&] { (void)layout.segments_of(rank); }),
          error_of([&] { (void)layout.segments_by_global(rank); }), error_of([&] { (void)layout.global_rows(rank); }),
          error_of([&] { (void)layout.positions(rank); })}) {
      EXPECT_NE(message.find(expected), std::string::npos) << message;
    }
  }
}

TEST(SequenceLayout, DigestsTellLayoutsApart) {
  std::set<std::uint64_t> digests;
  std::size_t made = 0;
  for (const LayoutKind kind : kKinds) {
    for (const int ranks : {2, 3, 4}) {
      for (const Lengths& cu : std::vector<Lengths>{{0, 96}, {0, 97}, {0, 48, 96}, {0, 47, 96}, {0, 0, 96}}) {
        const auto digest = SequenceLayout::make(kind, ranks, cu).digest();
        EXPECT_EQ(digest, SequenceLayout::make(kind, ranks, cu).digest());
        // One document apart from empty ones: zigzag inside it is zigzag.
        if (kind == LayoutKind::document_zigzag && cu[1] != 48 && cu[1] != 47) continue;
        digests.insert(digest);
        ++made;
      }
    }
  }
  EXPECT_EQ(digests.size(), made);
}

/// Ranks dealt to groups round by round, so that no group is a range of ranks.
std::vector<std::vector<int>> groups_of(int ranks, int groups) {
  std::vector<std::vector<int>> all(static_cast<std::size_t>(groups));
  for (int rank = 0; rank < ranks; ++rank) all[static_cast<std::size_t>(rank % groups)].push_back(rank);
  return all;
}

/// Global rows of a group as parts and moves place them.
std::vector<std::int64_t> rows_as_placed(const SequenceLayout& layout, const std::vector<int>& members, const GroupedLayout& grouped,
                                         std::size_t group) {
  std::vector<std::int64_t> arrived(static_cast<std::size_t>(grouped.layout.rows_of(static_cast<int>(group))), -1), placed;
  for (const GroupedLayout::Part& part : grouped.parts[group]) {
    const auto rows = layout.global_rows(members[static_cast<std::size_t>(part.member)]);
    for (std::int64_t t = 0; t < part.rows; ++t)
      arrived.at(static_cast<std::size_t>(part.to + t)) = rows.at(static_cast<std::size_t>(part.from + t));
  }
  if (grouped.moves[group].empty()) return arrived;
  placed.assign(arrived.size(), -1);
  for (const RowMove& move : grouped.moves[group]) {
    for (std::int64_t t = 0; t < move.rows; ++t)
      placed.at(static_cast<std::size_t>(move.to + t * move.to_stride)) =
          arrived.at(static_cast<std::size_t>(move.from + t * move.from_stride));
  }
  return placed;
}

TEST(GroupedLayout, PartsAndMovesPutEveryRowWhereTheLayoutHasIt) {
  for_all_layouts([](const SequenceLayout& layout) {
    for (const int count : {1, 2, layout.ranks()}) {
      if (layout.ranks() % count != 0) continue;
      const std::vector<std::vector<int>> groups = groups_of(layout.ranks(), count);
      const GroupedLayout grouped(layout, groups);
      std::int64_t rows = 0;
      for (std::size_t group = 0; group < groups.size(); ++group) {
        ASSERT_EQ(rows_as_placed(layout, groups[group], grouped, group), grouped.layout.global_rows(static_cast<int>(group)));
        rows += grouped.layout.rows_of(static_cast<int>(group));
      }
      ASSERT_EQ(rows, layout.tokens());
    }
  });
}

TEST(GroupedLayout, AllRanksTogetherHaveOneSegmentADocument) {
  const Lengths cu = borders(Lengths(20, 50));
  for (const LayoutKind kind : {LayoutKind::contiguous, LayoutKind::zigzag, LayoutKind::document_zigzag, LayoutKind::striped}) {
    const GroupedLayout grouped(SequenceLayout::make(kind, 8, cu), groups_of(8, 1));
    EXPECT_EQ(grouped.layout.segments_of(0).size(), 20u) << to_string(kind);
    EXPECT_EQ(grouped.moves[0].empty(), kind == LayoutKind::contiguous || kind == LayoutKind::zigzag) << to_string(kind);
  }
}
TEST(GroupedLayout, StripesOfAllRanksMoveAsOne) {
  // Documents that are shorter than a round too: the rows of a member stay 8 apart through all of them.
  const GroupedLayout grouped(SequenceLayout::make(LayoutKind::striped, 8, borders({50, 3, 1, 20, 7, 30})), groups_of(8, 1));
  ASSERT_EQ(grouped.moves[0].size(), 8u);
  for (std::size_t member = 0; member < 8; ++member) {
    EXPECT_EQ(grouped.moves[0][member].to, static_cast<std::int64_t>(member));
    EXPECT_EQ(grouped.moves[0][member].to_stride, 8);
  }
}

TEST(GroupedLayout, StripesOfSomeRanksTakeTurns) {
  const SequenceLayout layout = SequenceLayout::make(LayoutKind::striped, 64, borders({70, 3, 65, 130, 64, 1, 90}));
  std::vector<std::vector<int>> halves(2);
  for (int rank = 0; rank < 64; ++rank) halves[rank < 32 ? 0U : 1U].push_back(rank);
  const GroupedLayout grouped(layout, halves);
  for (std::size_t group = 0; group < 2; ++group) {
    EXPECT_EQ(rows_as_placed(layout, halves[group], grouped, group), grouped.layout.global_rows(static_cast<int>(group)));
    EXPECT_TRUE(std::ranges::is_sorted(grouped.layout.global_rows(static_cast<int>(group))));
    EXPECT_LT(grouped.layout.segments_of(static_cast<int>(group)).size(), 32u);
    EXPECT_LT(grouped.moves[group].size(), 7u * 32u);
  }
  // Every second rank: no two rows follow each other, so that turns gain nothing.
  const GroupedLayout apart(layout, groups_of(64, 2));
  EXPECT_EQ(rows_as_placed(layout, groups_of(64, 2)[1], apart, 1), apart.layout.global_rows(1));
  EXPECT_TRUE(apart.moves[1].empty());
}

TEST(GroupedLayout, StripesStayWhereThatIsLessThanTheirRows) {
  const Lengths cu{0, 1000};
  const GroupedLayout all(SequenceLayout::make(LayoutKind::striped, 8, cu), groups_of(8, 1));
  EXPECT_EQ(all.layout.segments_of(0).size(), 8u);
  EXPECT_TRUE(all.moves[0].empty());
  // Two ranks of eight: their rows lie in pairs, which are more than the stripes.
  const GroupedLayout pairs(SequenceLayout::make(LayoutKind::striped, 8, borders(Lengths(4, 100))), groups_of(8, 4));
  EXPECT_EQ(pairs.layout.segments_of(0).size(), 8u);
}

}  // namespace
}  // namespace periplus
