#include "parallel/strategy/gather.h"

#include <map>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "parallel/balanced_layout.h"
#include "parallel/plan/verify.h"
#include "runtime/error.h"
#include "tests/parallel/plan/plan_cases.h"
#include "tests/parallel/strategy/routes.h"

namespace periplus::strategy {
namespace {

using test::Lengths;
using test::routes;
using Texts = std::vector<std::string>;

AttentionProblem problem_of(LayoutKind layout, int ranks, const MaskSpec& mask = {}, int kv_heads = 2) {
  return test::ring_problem(layout, ranks, {0, 16 * ranks}, mask, 2 * kv_heads, kv_heads);
}

/// "slot[rows] to peer" of every message that a rank sends from its keys.
Texts keys_sent(const AttentionProblem& problem, const AttentionOptions& options, int rank) {
  const plan::Program program = make_program(problem, options, Pass::forward, rank);
  Texts all;
  for (const plan::Message& m : program.sends) {
    const std::string& slot = program.slot_of(m.view).name;
    if (slot == "k") all.push_back(fmt::format("{}[{}:{}] to {}", slot, m.view.row0, m.view.row0 + m.view.rows, m.peer));
  }
  return all;
}

std::int64_t count(const plan::Program& program, plan::Op op) { return std::ranges::count(program.steps, op, &plan::Step::op); }

TEST(GatherKv, EveryStageGoesToAllRanksNearestFirst) {
  const AttentionOptions options{.strategy = "gather_kv"};
  const AttentionProblem problem = problem_of(LayoutKind::zigzag, 4);
  EXPECT_EQ(routes(problem, options, Pass::forward, 1), (Texts{"0: 2 3 0", "0: 2 3 0"}));
  // Gradients go to where the rows came from.
  EXPECT_EQ(routes(problem, options, Pass::backward, 1), (Texts{"0: 2 3 0", "0: 2 3 0", "1: 0 3 2", "1: 0 3 2"}));
}

TEST(GatherKv, StagesAreGroupsOfKvHeads) {
  const auto exchanges = [](int kv_heads, int stages) {
    const AttentionProblem problem = problem_of(LayoutKind::zigzag, 3, {}, kv_heads);
    const plan::Program program = make_program(problem, {.strategy = "gather_kv", .stages = stages}, Pass::forward, 0);
    for (const plan::Message& m : program.sends) EXPECT_EQ(m.view.heads * count(program, plan::Op::exchange), kv_heads);
    return count(program, plan::Op::exchange);
  };
  for (const auto& [kv_heads, stages] : std::map<int, int>{{1, 1}, {2, 2}, {3, 3}, {6, 6}, {8, 8}, {11, 1}, {12, 6}, {16, 8}})
    EXPECT_EQ(exchanges(kv_heads, 0), stages) << kv_heads << " KV heads";
  for (const int stages : {1, 2, 3, 4, 6, 12}) EXPECT_EQ(exchanges(12, stages), stages);
}

TEST(GatherKv, TheFirstStageHidesBehindTheOwnRows) {
  const plan::Program program = make_program(problem_of(LayoutKind::zigzag, 4), {.strategy = "gather_kv", .stages = 1}, Pass::forward, 2);
  ASSERT_GE(program.steps.size(), 2u);
  EXPECT_EQ(program.steps[0].op, plan::Op::exchange);
  EXPECT_EQ(program.steps[1].op, plan::Op::attend);
  EXPECT_TRUE(program.after_of(program.steps[1]).empty());
}

TEST(GatherKv, BytesAreThoseOfTheFormulaForAnyLengths) {
  for (const int ranks : {1, 2, 3, 7}) {
    for (const Lengths& cu : {Lengths{0, 1}, Lengths{0, 5, 47}, Lengths{0, 64}}) {
      const AttentionProblem problem = test::ring_problem(LayoutKind::document_zigzag, ranks, cu);
      for (const Pass pass : {Pass::forward, Pass::backward}) {
        const plan::Plan plan = make_plan(problem, {.strategy = "gather_kv"}, pass);
        const std::int64_t kv_bytes = cu.back() * 2 * (8 + 8) * 4;  // f32 travels as it is summed
        EXPECT_EQ(plan.claim.bytes_sent, (ranks - 1) * kv_bytes * (pass == Pass::forward ? 1 : 2));
        EXPECT_EQ(plan::verify(plan).bytes_sent, plan.claim.bytes_sent);
      }
    }
  }
}

TEST(GroupCast, CausalRowsGoToLaterRanksOnly) {
  const AttentionOptions options{.strategy = "group_cast", .stages = 1};
  const AttentionProblem problem = problem_of(LayoutKind::contiguous, 4);
  EXPECT_EQ(keys_sent(problem, options, 0), (Texts{"k[0:16] to 1", "k[0:16] to 2", "k[0:16] to 3"}));
  EXPECT_EQ(keys_sent(problem, options, 2), (Texts{"k[0:16] to 3"}));
  EXPECT_EQ(keys_sent(problem, options, 3), Texts{});
}

TEST(GroupCast, StagesAreGroupsOfRanksByDistance) {
  const AttentionProblem problem = problem_of(LayoutKind::zigzag, 6);
  const auto of = [&](int stages) { return routes(problem, {.strategy = "group_cast", .stages = stages}, Pass::forward, 1); };
  EXPECT_EQ(of(1), (Texts{"0: 2 3 4 5 0"}));
  EXPECT_EQ(of(2), (Texts{"0: 2 3", "0: 4 5 0"}));
  EXPECT_EQ(of(5), (Texts{"0: 2", "0: 3", "0: 4", "0: 5", "0: 0"}));
  EXPECT_EQ(of(0), of(4));
}

TEST(GroupCast, GradientsOfRowsComeBackInOneMessage) {
  const AttentionProblem problem = problem_of(LayoutKind::contiguous, 4, {.causal = true, .window_left = 5, .sink_tokens = 3});
  // Rank 1 sees 5 rows before its own and the 3 first ones: two runs, with too short a gap to leave out.
  EXPECT_EQ(keys_sent(problem, {.strategy = "group_cast"}, 0), (Texts{"k[0:16] to 1", "k[0:3] to 2", "k[0:3] to 3"}));
  const plan::Program program = make_program(problem, {.strategy = "group_cast"}, Pass::backward, 0);
  std::map<int, std::int64_t> rows;
  for (const plan::Message& m : program.receives) {
    if (program.slot_of(m.view).name.starts_with("dk.back")) rows[m.peer] += m.view.rows;
  }
  EXPECT_EQ(rows, (std::map<int, std::int64_t>{{1, 16}, {2, 3}, {3, 3}}));
}

TEST(GroupCast, LongGapsStayAtHome) {
  const AttentionProblem problem =
      test::ring_problem(LayoutKind::contiguous, 4, {0, 400}, {.causal = true, .window_left = 5, .sink_tokens = 3});
  EXPECT_EQ(keys_sent(problem, {.strategy = "group_cast"}, 0), (Texts{"k[0:3] to 1", "k[95:100] to 1", "k[0:3] to 2", "k[0:3] to 3"}));
  EXPECT_EQ(keys_sent(problem, {.strategy = "group_cast"}, 1), (Texts{"k[95:100] to 2"}));
}

TEST(GroupCast, ManyRunsBecomeFewMessages) {
  // Rank 1 owns the ends of 20 documents and looks back to 20 rows of each: runs with gaps of 30 rows.
  Lengths cu{0};
  std::vector<Segment> segments;
  for (int document = 0; document < 20; ++document) {
    const std::int64_t start = cu.back();
    cu.push_back(start + 60);
    segments.push_back({0, 50 * document, start, 50});
    segments.push_back({1, 10 * document, start + 50, 10});
  }
  const AttentionProblem problem{SequenceLayout::from_segments(2, cu, segments), Mask({.causal = true, .window_left = 20}, cu)};
  EXPECT_EQ(keys_sent(problem, {.strategy = "group_cast"}, 0), (Texts{"k[30:1000] to 1"}));
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    const plan::Verdict verdict = plan::verify(make_plan(problem, {.strategy = "group_cast"}, pass));
    EXPECT_TRUE(verdict.ok()) << verdict.failures.front();
  }
}

TEST(Halo, NeighboursOnBothSidesUnderZigzag) {
  // Chunks of 8: rank 1 owns chunks 1 and 6, whose ends rank 2 (chunk 2) and rank 0 (chunk 7) look back to.
  const AttentionProblem problem = problem_of(LayoutKind::zigzag, 4, {.causal = true, .window_left = 5});
  EXPECT_EQ(keys_sent(problem, {.strategy = "halo"}, 1), (Texts{"k[3:8] to 2", "k[11:16] to 0"}));
  EXPECT_EQ(keys_sent(problem, {.strategy = "halo"}, 3), (Texts{"k[11:16] to 2"})) << "chunk 3 is followed by its own chunk 4";
  const AttentionProblem both = problem_of(LayoutKind::contiguous, 4, {.causal = false, .window_left = 4, .window_right = 2});
  EXPECT_EQ(keys_sent(both, {.strategy = "halo"}, 1), (Texts{"k[12:16] to 2", "k[0:2] to 0"}));
}

TEST(Halo, TrafficDoesNotGrowWithRanks) {
  for (const int ranks : {2, 4, 8, 16}) {
    const plan::Program program =
        make_program(problem_of(LayoutKind::contiguous, ranks, {.causal = true, .window_left = 7}), {.strategy = "halo"}, Pass::forward, 0);
    EXPECT_EQ(program.bytes_sent(), 7 * 2 * (8 + 8) * 4);
  }
}

TEST(Gather, IsProvenOnTheBalancedLayoutOfIrregularMasks) {
  const Lengths cu = test::borders({1, 300, 2, 40, 0, 77, 5, 190});
  for (const MaskSpec& mask : {MaskSpec{}, MaskSpec{.causal = true, .window_left = 30, .sink_tokens = 2}}) {
    for (const int ranks : {2, 5, 8}) {
      const Mask bands(mask, cu);
      AttentionProblem problem{make_layout(LayoutKind::balanced, ranks, bands), bands};
      problem.q_heads = 6, problem.kv_heads = 3, problem.head_size = problem.value_size = 4;
      for (const char* name : {"gather_kv", "group_cast", "halo"}) {
        if (!refusal(find_strategy(name), problem, {.strategy = name}).empty()) continue;
        for (const Pass pass : {Pass::forward, Pass::backward}) {
          const plan::Verdict verdict = plan::verify(make_plan(problem, {.strategy = name}, pass));
          ASSERT_TRUE(verdict.ok()) << name << " on " << ranks << " ranks: " << verdict.failures.front();
        }
      }
    }
  }
}

TEST(Gather, RefusesStagesAndMasksItCannotServe) {
  const auto reason = [](const AttentionProblem& problem, const AttentionOptions& options) {
    return refusal(find_strategy(options.strategy), problem, options);
  };
  const AttentionProblem problem = problem_of(LayoutKind::zigzag, 3);
  EXPECT_EQ(reason(problem, {.strategy = "gather_kv", .stages = 3}),
            "3 stages for 2 KV heads; a stage is a group of KV heads, use a divisor");
  EXPECT_EQ(reason(problem, {.strategy = "group_cast", .stages = 3}),
            "3 stages on 3 ranks; a stage is a group of other ranks, use at most 2");
  EXPECT_EQ(reason(problem, {.strategy = "group_cast", .stages = 2}), "");
  EXPECT_NE(reason(problem, {.strategy = "halo"}).find("use group_cast or ring"), std::string::npos);
  EXPECT_NE(reason(problem_of(LayoutKind::zigzag, 3, {.causal = false, .window_left = 3}), {.strategy = "halo"}), "");
  EXPECT_EQ(reason(problem_of(LayoutKind::zigzag, 3, {.causal = true, .window_left = 3}), {.strategy = "halo"}), "");
  EXPECT_NE(reason(problem, {.strategy = "halo", .stages = 2}), "");
  EXPECT_NE(reason(problem, {.strategy = "gather_kv", .pieces = 2}), "");
}

}  // namespace
}  // namespace periplus::strategy
