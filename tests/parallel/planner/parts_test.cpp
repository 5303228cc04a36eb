// The parts of the planner one by one.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include <gtest/gtest.h>

#include "parallel/planner/baseline.h"
#include "parallel/planner/bucket.h"
#include "parallel/planner/chunk.h"
#include "parallel/planner/linear_program.h"
#include "runtime/error.h"
#include "tests/parallel/planner/cases.h"

namespace periplus::planner {
namespace {

using Lengths = std::vector<std::int64_t>;

/// The textbook program, O(buckets x n^2).
std::int64_t least_padding(const Lengths& lengths, int buckets) {
  const std::size_t n = lengths.size();
  constexpr std::int64_t kFar = std::numeric_limits<std::int64_t>::max() / 4;
  std::vector<std::int64_t> before(n + 1, kFar);
  before[0] = 0;
  for (int q = 0; q < buckets; ++q) {
    std::vector<std::int64_t> now = before;
    for (std::size_t end = 1; end <= n; ++end) {
      std::int64_t padding = 0;
      for (std::size_t begin = end; begin-- > 0;) {
        padding += lengths[end - 1] - lengths[begin];
        now[end] = std::min(now[end], before[begin] + padding);
      }
    }
    before = now;
  }
  return before[n];
}

/// Every way to cut.
std::int64_t least_padding_by_force(const Lengths& lengths, std::size_t begin, int buckets) {
  if (begin == lengths.size()) return 0;
  if (buckets == 0) return std::numeric_limits<std::int64_t>::max() / 4;
  std::int64_t best = std::numeric_limits<std::int64_t>::max() / 4;
  for (std::size_t end = begin + 1; end <= lengths.size(); ++end) {
    std::int64_t padding = 0;
    for (std::size_t i = begin; i < end; ++i) padding += lengths[end - 1] - lengths[i];
    best = std::min(best, padding + least_padding_by_force(lengths, end, buckets - 1));
  }
  return best;
}

TEST(Buckets, AreAsGoodAsAnyCut) {
  std::mt19937_64 random(3);
  for (int i = 0; i < 300; ++i) {
    Lengths lengths = random_lengths(random, 1 + static_cast<int>(random() % (i < 200 ? 9 : 120)), 100000);
    std::ranges::sort(lengths);
    const int buckets = 1 + static_cast<int>(random() % (i < 200 ? 4 : 16));
    const std::vector<int> ends = cut_into_buckets(lengths, buckets);
    ASSERT_LE(ends.size(), static_cast<std::size_t>(buckets));
    ASSERT_EQ(ends.back(), static_cast<int>(lengths.size()));
    ASSERT_TRUE(std::ranges::is_sorted(ends, std::less_equal()));
    EXPECT_EQ(padding_of(lengths, ends), least_padding(lengths, buckets));
    if (i < 200) {
      EXPECT_EQ(padding_of(lengths, ends), least_padding_by_force(lengths, 0, buckets));
    }
  }
  EXPECT_TRUE(cut_into_buckets(Lengths{}, 3).empty());
  EXPECT_THROW(cut_into_buckets(Lengths{1}, 0), InvalidArgument);
  EXPECT_THROW(cut_into_buckets(Lengths{2, 1}, 1), InvalidArgument);
}

TEST(Chunks, HaveTheLeastLargestSum) {
  std::mt19937_64 random(4);
  for (int i = 0; i < 200; ++i) {
    const Lengths lengths = random_lengths(random, 1 + static_cast<int>(random() % 10), 1000);
    const int chunks = 1 + static_cast<int>(random() % 4);
    const auto largest = [&](const std::vector<int>& ends) {
      std::int64_t most = 0;
      int begin = 0;
      for (const int end : ends) {
        most = std::max(most, std::accumulate(lengths.begin() + begin, lengths.begin() + end, std::int64_t{0}));
        begin = end;
      }
      return most;
    };
    const std::vector<int> ends = cut_into_chunks(lengths, chunks);
    ASSERT_LE(ends.size(), static_cast<std::size_t>(chunks));
    ASSERT_EQ(ends.back(), static_cast<int>(lengths.size()));
    // Against all ways to place chunks - 1 borders.
    std::int64_t best = std::numeric_limits<std::int64_t>::max();
    const int n = static_cast<int>(lengths.size());
    for (int code = 0; code < std::pow(n + 1, chunks - 1); ++code) {
      std::vector<int> cut;
      for (int c = 0, rest = code; c + 1 < chunks; ++c, rest /= n + 1) cut.push_back(rest % (n + 1));
      cut.push_back(n);
      if (std::ranges::is_sorted(cut)) best = std::min(best, largest(cut));
    }
    EXPECT_EQ(largest(ends), best);
  }
}

TEST(DualSimplex, SolvesAndKeepsItsBasis) {
  // min -x - 2 y with x + y <= 4, x + 3 y <= 6: x 3, y 1.
  LinearProgram program;
  program.add_row(-std::numeric_limits<double>::infinity(), 4);
  program.add_row(-std::numeric_limits<double>::infinity(), 6);
  const std::vector<std::pair<int, double>> x = {{0, 1}, {1, 1}}, y = {{0, 1}, {1, 3}};
  program.add_column(-1, std::numeric_limits<double>::infinity(), x);
  program.add_column(-2, std::numeric_limits<double>::infinity(), y);
  DualSimplex simplex;
  const LinearSolution solution = simplex.solve(program);
  ASSERT_TRUE(solution.optimal);
  const auto expect_dual_of_optimum = [](const LinearSolution& found) {
    ASSERT_EQ(found.duals.size(), 2u);
    EXPECT_NEAR(found.duals[0] * 4 + found.duals[1] * 6, -5, 1e-9);
  };
  expect_dual_of_optimum(solution);
  EXPECT_TRUE(simplex.solve(program).optimal);
  EXPECT_EQ(simplex.iterations(), 0);
  // No point has x + y >= 10.
  program.row_lower[0] = 10, program.row_upper[0] = 20;
  EXPECT_FALSE(simplex.solve(program).optimal);
  program.row_lower[0] = 0, program.row_upper[0] = 4;
  expect_dual_of_optimum(simplex.solve(program));
}

TEST(Places, KeepGroupsInsideNodes) {
  const std::vector<int> degrees = {1, 2, 4, 8, 2, 1, 3};
  const std::vector<int> first = place(degrees, 24, 4);
  ASSERT_EQ(first.size(), degrees.size());
  std::vector<bool> taken(24, false);
  for (std::size_t g = 0; g < degrees.size(); ++g) {
    EXPECT_TRUE(degrees[g] > 4 || first[g] / 4 == (first[g] + degrees[g] - 1) / 4);
    EXPECT_TRUE(degrees[g] <= 4 || first[g] % 4 == 0);
    for (int r = first[g]; r < first[g] + degrees[g]; ++r) {
      EXPECT_FALSE(taken[static_cast<std::size_t>(r)]);
      taken[static_cast<std::size_t>(r)] = true;
    }
  }
  EXPECT_TRUE(place(std::vector<int>{3, 3}, 6, 4).empty());  // two devices of each node are left over
  EXPECT_EQ(place(std::vector<int>{3, 3}, 8, 4).size(), 2U);
  EXPECT_TRUE(place(std::vector<int>{8, 1}, 8, 4).empty());
}

TEST(Costs, FollowTheFormulas) {
  const Model model = small_model();
  const CostModel cost(model, small_machine(8));
  const auto find = [&](int degree, Method method, int heads) -> const Kind& {
    return *std::ranges::find_if(
        cost.kinds(), [&](const Kind& kind) { return kind.degree == degree && kind.method == method && kind.head_degree == heads; });
  };
  EXPECT_NEAR(cost.kinds()[0].seconds(1000), 2e-9 * 1e6 + 1e-5 * 1e3, 1e-15);
  // 4 layers, twice: 512 of q and of out and 2 x 128 of k and v, in 2 bytes, over 4 devices; two KV heads on four devices: two copies.
  const double exchanged = 2 * 4 * (2 * 512 / 4.0 + 2 * 64) * 2;
  EXPECT_NEAR(find(4, Method::ulysses, 4).seconds(1000), (2e-3 + 1e-2) / 4 + 1000 * exchanged / 8e9, 1e-12);
  // A ring of 8 moves 7/8 of k and v: forward and backward in bf16, their gradients in f32; over one card.
  const double moved = 4 * 2 * 128 * (2 + 2 + 4) * 7 / 8.0 / 2e9;
  const Kind& ring = find(8, Method::ring, 1);
  EXPECT_NEAR(ring.seconds(100), std::max(2e-9 * 1e4 / 8 / 0.9, moved * 100) + 1e-5 * 100 / 8, 1e-12);
  EXPECT_NEAR(ring.start, 3 * 4 * 7 * 1e-5, 1e-12);
  EXPECT_EQ(find(8, Method::ulysses, 8).capacity, static_cast<std::int64_t>((2.25e8 - 1e9 / 8) * 8 / 1e5));
  EXPECT_LT(find(8, Method::gather_kv, 1).capacity, find(8, Method::ulysses, 8).capacity);
  // Seven heads cannot be shared by two devices.
  Model odd = small_model();
  odd.heads = 7, odd.kv_heads = 7, odd.hidden = 448;
  const CostModel rings(odd, small_machine(8));
  EXPECT_TRUE(
      std::ranges::none_of(rings.kinds(), [](const Kind& kind) { return kind.method == Method::ulysses || kind.method == Method::usp; }));
  EXPECT_EQ(CostModel(odd, small_machine(8), {.devices = 8, .ulysses_only = true}).degrees().size(), 1U);
}

TEST(Baselines, AreInOrder) {
  std::mt19937_64 random(6);
  for (int i = 0; i < 30; ++i) {
    const CostModel cost(small_model(), small_machine(8), {.devices = 8, .ulysses_only = true});
    const Lengths lengths = random_lengths(random, 50, cost.longest() / 3);
    const Batch batch(cost, lengths);
    const Baselines others = baselines(batch, cost.longest(), {});
    EXPECT_EQ(cost.kinds()[static_cast<std::size_t>(others.static_kind)].degree, 8);
    EXPECT_LE(others.adaptive, others.static_best);
    EXPECT_GT(others.adaptive, 0);
    EXPECT_GE(others.first_fit, others.static_best * (1 - 1e-9));
    EXPECT_GE(others.best_fit, others.static_best * (1 - 1e-9));
  }
}

}  // namespace
}  // namespace periplus::planner
