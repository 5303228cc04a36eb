#include "parallel/strategy/balanced_helper.h"

#include <map>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "parallel/plan/ops.h"
#include "parallel/plan/verify.h"
#include "tests/parallel/plan/plan_cases.h"

namespace periplus::strategy {
namespace {

using test::Lengths;

const AttentionOptions kBalancedHelper{.strategy = "balanced_helper"};

AttentionProblem problem_of(int ranks, const Lengths& cu, const MaskSpec& mask = {}) {
  return test::ring_problem(LayoutKind::contiguous, ranks, cu, mask);
}

/// Whose rows a slot holds at a step: those of the rank that sent them last, or the rank's own.
plan::Rank owner_of(const plan::Program& program, std::size_t at, const plan::View& view) {
  plan::Rank owner = program.rank;
  for (std::size_t i = 0; i < at; ++i) {
    for (const plan::Message& m : program.receives_of(program.steps[i])) {
      if (m.view.slot == view.slot) owner = m.peer;
    }
  }
  return owner;
}

struct Meeting {
  plan::Rank queries, keys, worker;
  int q_heads;
};
/// Pairs of shards that the steps of all ranks attend, by step.
std::map<int, std::vector<Meeting>> meetings(const AttentionProblem& problem, Pass pass) {
  std::map<int, std::vector<Meeting>> all;
  for (int rank = 0; rank < problem.layout.ranks(); ++rank) {
    const plan::Program program = make_program(problem, kBalancedHelper, pass, rank);
    for (std::size_t i = 0; i < program.steps.size(); ++i) {
      const plan::Step& step = program.steps[i];
      if ((step.op != plan::Op::attend && step.op != plan::Op::attend_backward) || step.bands.count == 0) continue;
      const plan::View q = program.accesses_of(step)[plan::attend_operand::q].view,
                       k = program.accesses_of(step)[plan::attend_operand::k].view;
      all[step.label.index].push_back({owner_of(program, i, q), owner_of(program, i, k), rank, static_cast<int>(q.heads)});
    }
  }
  return all;
}

/// "queries keys worker", for all ranks in order.
std::vector<std::string> table(const std::vector<Meeting>& meetings) {
  std::vector<std::string> lines;
  for (const Meeting& m : meetings) lines.push_back(fmt::format("{} {} {}", m.queries, m.keys, m.worker));
  return lines;
}

using Lines = std::vector<std::string>;

TEST(BalancedHelper, TableOfFourRanks) {
  const auto all = meetings(problem_of(4, {0, 64}), Pass::forward);
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(table(all.at(0)), (Lines{"0 0 0", "1 1 1", "2 2 2", "3 3 3"}));
  EXPECT_EQ(table(all.at(1)), (Lines{"3 0 0", "1 0 1", "2 1 2", "3 2 3"}));
  EXPECT_EQ(table(all.at(2)), (Lines{"2 0 2", "3 1 3"})) << "helpers would do what the owners do";
}

TEST(BalancedHelper, TableOfFiveRanks) {
  const auto all = meetings(problem_of(5, {0, 80}), Pass::forward);
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(table(all.at(0)), (Lines{"0 0 0", "1 1 1", "2 2 2", "3 3 3", "4 4 4"}));
  EXPECT_EQ(table(all.at(1)), (Lines{"4 0 0", "1 0 1", "2 1 2", "3 2 3", "4 3 4"}));
  EXPECT_EQ(table(all.at(2)), (Lines{"3 0 0", "4 1 1", "2 0 2", "3 1 3", "4 2 4"}));
}

TEST(BalancedHelper, EveryCausalPairMeetsOnce) {
  for (int ranks = 1; ranks <= 17; ++ranks) {
    const AttentionProblem problem = problem_of(ranks, {0, 4 * ranks});
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      std::map<std::pair<int, int>, int> heads;
      for (const auto& [step, met] : meetings(problem, pass)) {
        for (const Meeting& m : met) heads[{m.queries, m.keys}] += m.q_heads;
      }
      EXPECT_EQ(heads.size(), static_cast<std::size_t>(ranks * (ranks + 1) / 2));
      for (const auto& [pair, count] : heads) {
        EXPECT_LE(pair.second, pair.first);
        EXPECT_EQ(count, problem.q_heads) << "queries of " << pair.first << ", keys of " << pair.second << ", " << ranks << " ranks";
      }
    }
  }
}

std::int64_t bytes_of(const AttentionProblem& problem, Pass pass) {
  std::int64_t bytes = 0;
  for (int rank = 0; rank < problem.layout.ranks(); ++rank) bytes += make_program(problem, kBalancedHelper, pass, rank).bytes_sent();
  return bytes;
}

TEST(BalancedHelper, PairsWithoutBandsSendNothing) {
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    // Every document on one rank.
    EXPECT_EQ(bytes_of(problem_of(4, {0, 5, 10, 20, 30, 40}), pass), 0);
    // Only the two ranks of the second document talk: rank 2 gets the keys of rank 1 and, in backward, returns sums.
    const std::int64_t keys = 10 * 2 * 8 * 4 * 2;
    EXPECT_EQ(bytes_of(problem_of(4, {0, 10, 30, 40}), pass), pass == Pass::forward ? keys : 2 * keys);
    // A window that ends in the shard before: three neighbours.
    EXPECT_EQ(bytes_of(problem_of(4, {0, 40}, {.window_left = 7}), pass), pass == Pass::forward ? 3 * keys : 6 * keys);
  }
}

TEST(BalancedHelper, ClosedFormulaHolds) {
  for (int ranks = 1; ranks <= 9; ++ranks) {
    AttentionProblem problem = problem_of(ranks, {0, 6 * ranks});
    problem.dtype = DType::bf16, problem.value_size = 4;
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      EXPECT_EQ(make_plan(problem, kBalancedHelper, pass).claim.bytes_sent, bytes_of(problem, pass)) << ranks;
    }
  }
  EXPECT_EQ(make_plan(problem_of(4, {0, 41}), kBalancedHelper, Pass::forward).claim.bytes_sent, -1);
  EXPECT_EQ(make_plan(problem_of(4, {0, 20, 40}), kBalancedHelper, Pass::forward).claim.bytes_sent, -1);
}

TEST(BalancedHelper, EveryCausalMaskAndLengthIsProven) {
  int turn = 0;
  for (const int ranks : {1, 2, 3, 4, 5, 6, 8, 13, 16, 33}) {
    for (const Lengths& cu : std::vector<Lengths>{{0, 7}, {0, 203}, {0, 40, 41, 42, 43, 47, 150}, {0}, {0, 0, 5, 5, 90}}) {
      for (const MaskSpec& mask : std::vector<MaskSpec>{{true, -1, -1, 0}, {true, 9, -1, 0}, {true, 6, -1, 3}, {true, 60, -1, 0}}) {
        AttentionProblem problem = problem_of(ranks, cu, mask);
        ++turn;
        problem.q_heads = turn % 3 == 0 ? 6 : 4, problem.kv_heads = turn % 3 == 0 ? 1 : 4;
        problem.sink = turn % 3 == 0, problem.lse_gradient = turn % 2 == 0, problem.contiguous_kv = turn % 5 != 0;
        problem.dtype = turn % 4 == 1 ? DType::bf16 : DType::f32;
        for (const Pass pass : {Pass::forward, Pass::backward}) {
          const plan::Verdict verdict = plan::verify(make_plan(problem, kBalancedHelper, pass));
          ASSERT_TRUE(verdict.ok()) << test::describe(LayoutKind::contiguous, ranks, cu, mask, pass) << ": " << verdict.failures.front();
        }
      }
    }
  }
}

TEST(BalancedHelper, RefusesWhatItsScheduleDoesNotCover) {
  const Strategy& strategy = find_strategy("balanced_helper");
  EXPECT_EQ(refusal(strategy, problem_of(4, {0, 64}), kBalancedHelper), "");
  for (const LayoutKind layout : {LayoutKind::zigzag, LayoutKind::striped, LayoutKind::document_zigzag}) {
    const std::string reason = refusal(strategy, test::ring_problem(layout, 4, {0, 64}), kBalancedHelper);
    EXPECT_NE(reason.find(to_string(layout)), std::string::npos) << reason;
    EXPECT_NE(reason.find("use layout contiguous with a causal mask, or strategy ring"), std::string::npos) << reason;
  }
  const std::string full = refusal(strategy, problem_of(4, {0, 64}, {.causal = false}), kBalancedHelper);
  EXPECT_NE(full.find("a full mask over layout contiguous"), std::string::npos) << full;
}

}  // namespace
}  // namespace periplus::strategy
