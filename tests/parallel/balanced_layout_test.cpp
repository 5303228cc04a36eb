#include "parallel/balanced_layout.h"

#include <algorithm>
#include <cmath>
#include <random>

#include <gtest/gtest.h>

#include "runtime/error.h"
#include "tests/parallel/plan/plan_cases.h"

namespace periplus {
namespace {

using test::Lengths;

/// Documents of a heavy-tailed corpus, cut off at `tokens`.
Lengths packed_documents(std::int64_t tokens) {
  std::mt19937_64 random(3);
  std::lognormal_distribution<double> length(6.5, 1.3);
  Lengths cu{0};
  while (cu.back() < tokens) cu.push_back(std::min(tokens, cu.back() + 1 + static_cast<std::int64_t>(length(random))));
  return cu;
}

double imbalance(const SequenceLayout& layout, const Mask& mask) {
  std::int64_t most = 0;
  for (int rank = 0; rank < layout.ranks(); ++rank) most = std::max(most, area_of_rank(layout, mask, rank));
  return static_cast<double>(most) * layout.ranks() / static_cast<double>(mask.area());
}

TEST(BalancedLayout, HoldsEveryRowOnceForAnyLengths) {
  for (const int ranks : {1, 2, 3, 7, 64}) {
    for (const Lengths& cu : {Lengths{0}, Lengths{0, 1}, Lengths{0, 5, 5, 90}, Lengths{0, 1000}, test::borders(Lengths(70, 1))}) {
      const Mask mask({}, cu);
      const SequenceLayout layout = make_layout(LayoutKind::balanced, ranks, mask);
      EXPECT_EQ(layout.kind(), LayoutKind::balanced);
      std::vector<std::int64_t> rows;
      for (int rank = 0; rank < ranks; ++rank) {
        for (const std::int64_t row : layout.global_rows(rank)) rows.push_back(row);
      }
      std::ranges::sort(rows);
      for (std::size_t i = 0; i < rows.size(); ++i) ASSERT_EQ(rows[i], static_cast<std::int64_t>(i));
      ASSERT_EQ(static_cast<std::int64_t>(rows.size()), cu.back());
    }
  }
}

TEST(BalancedLayout, SharesWorkOfPackedDocumentsAndNeedsLessTrafficThanARing) {
  constexpr int kRanks = 64;
  const Lengths cu = packed_documents(128 * 1024);
  const Mask mask({}, cu);
  const SequenceLayout layout = make_layout(LayoutKind::balanced, kRanks, mask);
  const double balanced = imbalance(layout, mask), zigzag = imbalance(SequenceLayout::make(LayoutKind::zigzag, kRanks, cu), mask);
  AttentionProblem problem{layout, mask};
  const auto bytes = [&](const AttentionOptions& options) {
    std::int64_t sum = 0;
    for (int rank = 0; rank < kRanks; ++rank) sum += make_program(problem, options, Pass::forward, rank).bytes_sent();
    return sum;
  };
  const std::int64_t cast = bytes({.strategy = "group_cast"}), ring = bytes({.strategy = "ring"});
  std::cout << cu.size() - 1 << " documents, 128K tokens, 64 ranks: largest area / mean " << balanced << " (zigzag " << zigzag
            << "), bytes of group_cast / ring " << static_cast<double>(cast) / static_cast<double>(ring) << "\n";
  EXPECT_LE(balanced, 1.02);
  EXPECT_LE(cast, ring);
}

TEST(BalancedLayout, DealsAlikeEverywhere) {
  const Mask mask({.causal = true, .window_left = 100}, packed_documents(5000));
  EXPECT_EQ(make_layout(LayoutKind::balanced, 6, mask).digest(), make_layout(LayoutKind::balanced, 6, mask).digest());
}

TEST(BalancedLayout, NeedsAMask) {
  const Lengths cu{0, 10};
  EXPECT_THROW(SequenceLayout::make(LayoutKind::balanced, 2, cu), InvalidArgument);
  EXPECT_THROW(make_layout(LayoutKind::balanced, 0, Mask({}, cu)), InvalidArgument);
  EXPECT_EQ(layout_kind_from_string("balanced"), LayoutKind::balanced);
}

}  // namespace
}  // namespace periplus
