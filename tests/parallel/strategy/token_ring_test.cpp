#include "parallel/strategy/token_ring.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "parallel/plan/verify.h"
#include "tests/parallel/plan/plan_cases.h"

namespace periplus::strategy {
namespace {

using test::Lengths;

const AttentionOptions kTokenRing{.strategy = "token_ring"};

/// Steps in program order: "label index", or "lane 1: slot to peer slot from peer".
std::vector<std::string> steps_of(const plan::Program& program) {
  std::vector<std::string> all;
  for (const plan::Step& step : program.steps) {
    if (step.op != plan::Op::exchange) {
      all.push_back(fmt::format("{} {}", step.label.text, step.label.index));
      continue;
    }
    std::string text = fmt::format("lane {}:", step.lane);
    const auto append = [&](std::string_view word, std::span<const plan::Message> messages) {
      for (const plan::Message& m : messages) text += fmt::format(" {} {} {}", program.slot_of(m.view).name, word, m.peer);
    };
    append("to", program.sends_of(step));
    append("from", program.receives_of(step));
    all.push_back(text);
  }
  return all;
}

TEST(TokenRing, StepsOfThePaper) {
  const AttentionProblem problem = test::ring_problem(LayoutKind::contiguous, 4, {0, 64}, {.causal = false});
  const plan::Program program = make_program(problem, kTokenRing, Pass::forward, 0);
  // Rank 0 of 4: queries go to rank 3; of rank 1, 2, 3 in turn they come by, and their results go straight home.
  const std::vector<std::string> steps = steps_of(program);
  std::vector<std::string> lanes[2];
  std::vector<std::string> compute;
  for (const std::string& step : steps)
    (step.starts_with("lane 0") ? lanes[0] : step.starts_with("lane 1") ? lanes[1] : compute).push_back(step);
  EXPECT_EQ(compute, (std::vector<std::string>{"pack -1", "step 0", "step 1", "step 2", "result of step 1", "step 3", "result of step 2",
                                               "result of step 3", "finish -1"}));
  EXPECT_EQ(lanes[0],
            (std::vector<std::string>{"lane 0: q.packed to 3 q.0 from 1", "lane 0: q.0 to 3 q.1 from 1", "lane 0: q.1 to 3 q.0 from 1"}));
  EXPECT_EQ(lanes[1], (std::vector<std::string>{"lane 1: out.part.0 to 1 lse.part.0 to 1 out.back.0 from 3 lse.back.0 from 3",
                                                "lane 1: out.part.1 to 2 lse.part.1 to 2 out.back.1 from 2 lse.back.1 from 2",
                                                "lane 1: out.part.0 to 3 lse.part.0 to 3 out.back.0 from 1 lse.back.0 from 1"}));
}

/// Rows of the first message of each exchange of a lane, by phase order.
std::vector<std::int64_t> rows_sent(const plan::Program& program, int lane) {
  std::vector<std::int64_t> rows;
  for (const plan::Step& step : program.steps) {
    if (step.op == plan::Op::exchange && step.lane == lane && step.sends.count > 0) rows.push_back(program.sends_of(step)[0].view.rows);
  }
  return rows;
}

TEST(TokenRing, CausalZigzagSendsLateHalvesAfterTheWrap) {
  constexpr std::int64_t kChunk = 4;
  for (int ranks = 2; ranks <= 9; ++ranks) {
    const AttentionProblem problem = test::ring_problem(LayoutKind::zigzag, ranks, {0, 2 * ranks * kChunk});
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      for (int rank = 0; rank < ranks; ++rank) {
        std::vector<std::int64_t> packets, results;
        for (int step = 0; step + 1 < ranks; ++step) packets.push_back((rank + ranks - 1) % ranks + step + 1 < ranks ? 2 * kChunk : kChunk);
        // The owner of what this rank computed in a step is rank + step; before the wrap both of its halves saw early keys.
        for (int step = 1; step < ranks; ++step) results.push_back(rank + step < ranks ? 2 * kChunk : kChunk);
        const plan::Program program = make_program(problem, kTokenRing, pass, rank);
        EXPECT_EQ(rows_sent(program, 0), packets) << "rank " << rank << " of " << ranks;
        EXPECT_EQ(rows_sent(program, 1), results) << "rank " << rank << " of " << ranks;
      }
    }
  }
}

TEST(TokenRing, PacketsEndAtTheLastRankThatNeedsThem) {
  // Shards of 16 tokens and a window of 8 to the left: queries see the rank before theirs at most, and the first 8 of them do.
  const AttentionProblem problem = test::ring_problem(LayoutKind::contiguous, 5, {0, 80}, {.window_left = 8});
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    for (int rank = 0; rank < 5; ++rank) {
      const plan::Program program = make_program(problem, kTokenRing, pass, rank);
      EXPECT_EQ(rows_sent(program, 0), rank > 0 ? std::vector<std::int64_t>{8} : std::vector<std::int64_t>{}) << rank;
      EXPECT_EQ(rows_sent(program, 1), rank < 4 ? std::vector<std::int64_t>{8} : std::vector<std::int64_t>{}) << rank;
    }
  }
}

TEST(TokenRing, DocumentsOfOneRankSendNothing) {
  const AttentionProblem problem = test::ring_problem(LayoutKind::contiguous, 4, {0, 5, 10, 20, 30, 40});
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    for (int rank = 0; rank < 4; ++rank) EXPECT_EQ(make_program(problem, kTokenRing, pass, rank).bytes_sent(), 0);
  }
}

/// verify() compares the plan's bytes with the formula, so here is only where it holds.
TEST(TokenRing, ClosedFormulasHold) {
  const auto formula = [](LayoutKind layout, int ranks, const Lengths& cu, const MaskSpec& mask, Pass pass) {
    AttentionProblem problem = test::ring_problem(layout, ranks, cu, mask, 6, 3);
    problem.dtype = DType::bf16, problem.value_size = 4;
    const plan::Plan plan = make_plan(problem, kTokenRing, pass);
    const plan::Verdict verdict = plan::verify(plan);
    EXPECT_TRUE(verdict.ok()) << verdict.failures.front();
    return plan.claim.bytes_sent;
  };
  for (const LayoutKind layout : test::kLayoutKinds) {
    // 67 tokens over 5 ranks: unequal shards. Elements a query and head: q 8 of 2 bytes, out 4 and lse 1 of 4 bytes.
    EXPECT_EQ(formula(layout, 5, {0, 67}, {.causal = false}, Pass::forward), 4 * 67 * 6 * (8 * 2 + 4 * 4 + 4));
    EXPECT_EQ(formula(layout, 5, {0, 67}, {.causal = false}, Pass::backward), 4 * 67 * 6 * (8 * 2 + 4 * 2 + 4 + 4 + 8 * 4));
    EXPECT_EQ(formula(layout, 5, {0, 67}, {.causal = false, .window_left = 9}, Pass::forward), -1);
    EXPECT_EQ(formula(layout, 5, {0, 3}, {.causal = false}, Pass::forward), -1) << "ranks without keys need no queries";
  }
  for (const int ranks : {1, 2, 3, 4, 7, 8}) {
    const std::int64_t tokens = 2 * ranks * 5;
    // 3/4 of the full mask's.
    EXPECT_EQ(formula(LayoutKind::zigzag, ranks, {0, tokens}, {}, Pass::forward), (ranks - 1) * tokens * 3 / 4 * 6 * (8 * 2 + 4 * 4 + 4));
    EXPECT_EQ(formula(LayoutKind::zigzag, ranks, {0, tokens}, {}, Pass::backward),
              (ranks - 1) * tokens * 3 / 4 * 6 * (8 * 2 + 4 * 2 + 4 + 4 + 8 * 4));
  }
  EXPECT_EQ(formula(LayoutKind::zigzag, 4, {0, 81}, {}, Pass::forward), -1);
}

const std::vector<MaskSpec> kMasks{{true, -1, -1, 0}, {false, -1, -1, 0}, {true, 9, -1, 0}, {true, 6, -1, 3}, {false, 5, 4, 2}};

void expect_all_proven(int ranks) {
  int turn = 0;
  for (const LayoutKind layout : test::kLayoutKinds) {
    for (const Lengths& cu : std::vector<Lengths>{{0, 7}, {0, 203}, {0, 40, 41, 42, 43, 47, 150}, {0}, {0, 0, 5, 5, 90}}) {
      for (const MaskSpec& mask : kMasks) {
        ++turn;
        AttentionProblem problem = test::ring_problem(layout, ranks, cu, mask, turn % 3 == 0 ? 6 : 4, turn % 3 == 0 ? 1 : 4);
        problem.sink = turn % 3 == 0, problem.lse_gradient = turn % 2 == 0, problem.contiguous_kv = turn % 5 != 0;
        problem.dtype = turn % 4 == 1 ? DType::bf16 : DType::f32;
        for (const Pass pass : {Pass::forward, Pass::backward}) {
          const plan::Verdict verdict = plan::verify(make_plan(problem, kTokenRing, pass));
          ASSERT_TRUE(verdict.ok()) << test::describe(layout, ranks, cu, mask, pass) << ": " << verdict.failures.front();
        }
      }
    }
  }
}

TEST(TokenRing, EveryLayoutMaskAndLengthIsProven) {
  for (const int ranks : {1, 2, 3, 4, 5, 6, 8, 13, 24}) expect_all_proven(ranks);
}

TEST(TokenRing, TheCallersOwnLayoutIsProven) {
  const Lengths cu{0, 11, 24};
  const std::vector<Segment> segments{{0, 0, 0, 4, 2}, {0, 4, 20, 4},    {1, 0, 1, 4, 2}, {1, 4, 8, 3, 5},
                                      {2, 0, 9, 4},    {2, 4, 14, 2, 5}, {2, 6, 15, 3}};
  for (const MaskSpec& mask : kMasks) {
    AttentionProblem problem{SequenceLayout::from_segments(3, cu, segments), Mask(mask, cu)};
    problem.q_heads = 2, problem.head_size = problem.value_size = 4;
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      const plan::Verdict verdict = plan::verify(make_plan(problem, kTokenRing, pass));
      ASSERT_TRUE(verdict.ok()) << verdict.failures.front();
    }
  }
}

}  // namespace
}  // namespace periplus::strategy
