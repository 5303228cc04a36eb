// Plans of every strategy that must be proven.
#include <algorithm>
#include <iterator>
#include <random>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "parallel/plan/order.h"
#include "parallel/plan/verify.h"
#include "tests/parallel/plan/plan_cases.h"

namespace periplus::plan {
namespace {

using test::Lengths;

const std::vector<MaskSpec> kMasks{{true, -1, -1, 0}, {false, -1, -1, 0}, {true, 9, -1, 0}, {true, 6, -1, 3}, {false, 5, 4, 2}};

/// Many ranks get fewer packings, for time.
std::vector<Lengths> packings(int ranks) {
  std::vector<Lengths> all{{0, 7}, {0, 203}, {0, 40, 41, 42, 43, 47, 150}};
  if (ranks <= 9) all.insert(all.end(), {{0}, {0, 1}, {0, 0, 5, 5, 90}, {0, 1000}, test::borders(Lengths(30, 1))});
  return all;
}

/// What a rank packs, some message of it takes along.
void expect_packed_rows_travel(const Program& program) {
  for (const Step& step : program.steps) {
    if (std::string_view(step.label.text) != "pack") continue;
    const View packed = program.accesses_of(step)[1].view;
    EXPECT_TRUE(std::ranges::any_of(program.sends, [&](const Message& m) { return overlap(m.view, packed); }))
        << "rank " << program.rank << " packs '" << program.slot_of(packed).name << "' and does not send it";
  }
}

void expect_proven(const AttentionProblem& problem, Pass pass, const AttentionOptions& options = {}) {
  const Plan plan = make_plan(problem, options, pass);
  for (const Program& program : plan.programs) expect_packed_rows_travel(program);
  const Verdict verdict = verify(plan);
  ASSERT_TRUE(verdict.ok()) << verdict.failures.front();
  std::int64_t steps = 0, bytes = 0, messages = 0;
  for (const Program& program : plan.programs) {
    steps += static_cast<std::int64_t>(program.steps.size());
    bytes += program.bytes_sent();
    messages += static_cast<std::int64_t>(program.sends.size());
  }
  ASSERT_EQ(verdict.steps, steps);
  ASSERT_EQ(verdict.bytes_sent, bytes);
  ASSERT_EQ(verdict.messages, messages);
}

void expect_all_proven(int ranks) {
  std::size_t turn = 0;
  for (const LayoutKind layout : test::kLayoutKinds) {
    for (const Lengths& cu : packings(ranks)) {
      for (const MaskSpec& mask : kMasks) {
        const auto [q_heads, kv_heads] = std::vector<std::pair<int, int>>{{1, 1}, {4, 2}, {6, 1}, {3, 3}}[turn++ % 4];
        AttentionProblem problem = test::ring_problem(layout, ranks, cu, mask, q_heads, kv_heads);
        problem.sink = turn % 3 == 0, problem.lse_gradient = turn % 2 == 0, problem.contiguous_kv = turn % 5 != 0;
        problem.dtype = turn % 4 == 1 ? DType::bf16 : DType::f32;
        for (const Pass pass : {Pass::forward, Pass::backward}) {
          SCOPED_TRACE(test::describe(layout, ranks, cu, mask, pass));
          expect_proven(problem, pass);
        }
      }
    }
  }
}

// What a proof knows of the rows of its claim must not hide what is wrong with the next plan, nor outlive the claim.
TEST(Verifier, VerdictsDoNotDependOnPlansBefore) {
  Verifier verifier;
  const auto sound = [&](const Plan& plan) { return verifier.verify(plan).ok(); };
  for (const LayoutKind layout : test::kLayoutKinds) {
    for (const MaskSpec& mask : kMasks) {
      const AttentionProblem problem = test::ring_problem(layout, 4, Lengths{0, 40, 41, 103}, mask, 4, 2);
      for (const std::string strategy : {"ring", "ulysses", "group_cast"}) {
        SCOPED_TRACE(strategy + " " + test::describe(layout, 4, Lengths{0, 40, 41, 103}, mask, Pass::forward));
        const Plan plan = make_plan(problem, {.strategy = strategy}, Pass::forward);
        Plan lacks_a_band = plan;
        std::vector<Step>& steps = lacks_a_band.programs[1].steps;
        --std::find_if(steps.rbegin(), steps.rend(), [](const Step& step) { return step.bands.count > 0; })->bands.count;
        EXPECT_TRUE(sound(plan));
        EXPECT_FALSE(sound(lacks_a_band));
        EXPECT_TRUE(sound(plan));
        Plan of_another_mask = plan;
        of_another_mask.claim.mask = Mask({mask.causal, 1, mask.causal ? -1 : 2, 0}, problem.mask.cu_seqlens());
        EXPECT_FALSE(sound(of_another_mask));
        EXPECT_TRUE(sound(make_plan(problem, {.strategy = strategy}, Pass::backward)));
      }
    }
  }
}

TEST(VerifyRing, ProvesEveryLayoutMaskAndLengthOnFewRanks) {
  for (int ranks = 1; ranks <= 9; ++ranks) expect_all_proven(ranks);
}

TEST(VerifyRing, ProvesEveryLayoutMaskAndLengthOnManyRanks) {
  for (const int ranks : {16, 33, 64}) expect_all_proven(ranks);
}

class VerifyStrategy : public testing::TestWithParam<AttentionOptions> {
 protected:
  /// Both passes of a problem, if the strategy accepts it.
  void expect_proven_if_accepted(const AttentionProblem& problem, const std::string& what) {
    if (!test::refusal(problem, GetParam()).empty()) return;
    SCOPED_TRACE(what);
    for (const Pass pass : {Pass::forward, Pass::backward}) expect_proven(problem, pass, GetParam());
    ++accepted_;
  }
  int accepted_ = 0;
};

/// Layout, lengths, mask, heads and flags at random.
AttentionProblem random_problem(int ranks, std::mt19937_64& random, std::string& what) {
  const auto below = [&](std::size_t n) { return random() % n; };
  constexpr std::pair<int, int> kHeads[] = {{1, 1}, {2, 1},  {3, 3},  {4, 2},  {5, 1},   {6, 3},
                                            {7, 7}, {10, 5}, {12, 4}, {16, 2}, {16, 16}, {24, 12}};
  const LayoutKind layout = test::kLayoutKinds[below(test::kLayoutKinds.size())];
  std::vector<Lengths> lengths = packings(ranks);
  for (int i = 0; i < 3; ++i) {
    Lengths documents(1 + below(8));
    for (std::int64_t& length : documents) length = static_cast<std::int64_t>(1 + below(i == 0 ? 4 : 70));
    lengths.push_back(test::borders(documents));
  }
  const Lengths& cu = lengths[below(lengths.size())];
  const MaskSpec& mask = kMasks[below(kMasks.size())];
  const auto [q_heads, kv_heads] = kHeads[below(std::size(kHeads))];
  AttentionProblem problem = test::ring_problem(layout, ranks, cu, mask, q_heads, kv_heads);
  problem.sink = below(3) == 0, problem.lse_gradient = below(2) == 0, problem.contiguous_kv = below(3) != 0;
  problem.dtype = below(2) == 0 ? DType::bf16 : DType::f32;
  what = test::describe(layout, ranks, cu, mask, Pass::forward) + fmt::format(" heads {}/{}", q_heads, kv_heads);
  return problem;
}

TEST_P(VerifyStrategy, ProvesASampleOfAllProblemsItAccepts) {
  std::mt19937_64 random(42);
  // "auto" simulates every strategy first, and adds no plan of its own.
  const bool choosing = GetParam().strategy == "auto";
  for (int ranks = 1; ranks <= (choosing ? 9 : 64); ranks = ranks < 10 ? ranks + 1 : 2 * ranks + 1) {
    for (int i = 0; i < (choosing ? 10 : ranks < 10 ? 60 : 6); ++i) {
      std::string what;
      const AttentionProblem problem = random_problem(ranks, random, what);
      expect_proven_if_accepted(problem, what);
    }
  }
  RecordProperty("accepted", accepted_);
  EXPECT_GE(accepted_, 30) << "it refuses nearly everything";
}

TEST_P(VerifyStrategy, ProvesTheCallersOwnLayoutOfMixedStrides) {
  const Lengths cu{0, 11, 24};
  const std::vector<Segment> segments{{0, 0, 0, 4, 2}, {0, 4, 20, 4},    {1, 0, 1, 4, 2}, {1, 4, 8, 3, 5},
                                      {2, 0, 9, 4},    {2, 4, 14, 2, 5}, {2, 6, 15, 3}};
  for (const MaskSpec& mask : kMasks) {
    AttentionProblem problem{SequenceLayout::from_segments(3, cu, segments), Mask(mask, cu)};
    problem.q_heads = problem.kv_heads = 6, problem.head_size = problem.value_size = 4;
    expect_proven_if_accepted(problem, test::describe(LayoutKind::custom, 3, cu, mask, Pass::forward));
  }
}

INSTANTIATE_TEST_SUITE_P(Strategies, VerifyStrategy, testing::ValuesIn(test::variants()), test::name_of_param);

}  // namespace
}  // namespace periplus::plan
