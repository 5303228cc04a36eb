#include "parallel/strategy/ring.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "parallel/plan/verify.h"
#include "runtime/error.h"
#include "tests/parallel/plan/plan_cases.h"
#include "tests/parallel/strategy/routes.h"

namespace periplus::strategy {
namespace {

using test::Lengths;
using test::routes;

AttentionProblem problem_of(int ranks, int q_heads = 4, int kv_heads = 2) {
  return test::ring_problem(LayoutKind::zigzag, ranks, {0, 16 * ranks}, {}, q_heads, kv_heads);
}

using Routes = std::vector<std::string>;

TEST(Ring, BlocksGoRoundAndSumsComeHome) {
  EXPECT_EQ(routes(problem_of(4), {}, Pass::forward, 1), (Routes{"0: 2", "0: 2", "0: 2"}));
  // The last visitor of the block of rank 1 is rank 0; rank 1 is the last one of the block of rank 2.
  EXPECT_EQ(routes(problem_of(4), {}, Pass::backward, 1), (Routes{"0: 2", "0: 2", "1: 2", "0: 2", "1: 2", "1: 2"}));
}

TEST(Ring, TwoWaysMeetHalfWay) {
  const AttentionOptions options{.strategy = "bidirectional_ring"};
  EXPECT_EQ(routes(problem_of(5), options, Pass::forward, 1), (Routes{"0: 2 0", "0: 2 0"}));
  EXPECT_EQ(routes(problem_of(6), options, Pass::forward, 1), (Routes{"0: 2 0", "0: 2 0", "0: 2"})) << "the opposite rank is met once";
  // Sums of the right-going blocks go home over three ranks to the left, those of the left-going over two to the right.
  EXPECT_EQ(routes(problem_of(6), options, Pass::backward, 1), (Routes{"0: 2 0", "0: 2 0", "1: 2 0", "0: 2", "1: 2 3", "1: 4"}));
}

TEST(Ring, OneHopBetweenNodesForAWholeTurnInside) {
  const AttentionOptions options{.strategy = "double_ring", .ranks_per_node = 3};
  // Rank 4 is the middle one of the second node: 5 is its neighbour, 1 its twin in the first node.
  EXPECT_EQ(routes(problem_of(6), options, Pass::forward, 4), (Routes{"2: 1", "0: 5", "0: 5", "0: 5", "0: 5"}));
  EXPECT_EQ(routes(problem_of(6), options, Pass::backward, 4),
            (Routes{"2: 1", "0: 5", "0: 5", "1: 5", "1: 5", "0: 5", "0: 5", "1: 5", "1: 5", "2: 1"}));
}

TEST(Ring, PiecesTravelOneAfterTheOther) {
  EXPECT_EQ(routes(problem_of(3), {.pieces = 2}, Pass::forward, 0), (Routes{"0: 1", "0: 1", "0: 1", "0: 1"}));
  const plan::Program program = make_program(problem_of(3), {.pieces = 2}, Pass::forward, 0);
  int attends = 0;
  for (const plan::Step& step : program.steps) attends += step.op == plan::Op::attend;
  EXPECT_EQ(attends, 6) << "two pieces of three blocks";
}

TEST(Ring, EveryRouteInPiecesIsProven) {
  int proven = 0;
  for (const int ranks : {1, 2, 3, 4, 6, 8, 12}) {
    for (const char* name : {"ring", "bidirectional_ring", "double_ring"}) {
      for (const int pieces : {1, 2, 3}) {
        for (const int node : {0, 1, 2, 3, 4, 12}) {
          if (node > 0 && (ranks % node != 0 || std::string_view(name) != "double_ring")) continue;
          AttentionProblem problem = test::ring_problem(LayoutKind::document_zigzag, ranks, {0, 40, 41, 42, 43, 47, 150}, {}, 6, 3);
          problem.sink = pieces == 2, problem.contiguous_kv = pieces != 3, problem.dtype = node == 2 ? DType::bf16 : DType::f32;
          for (const Pass pass : {Pass::forward, Pass::backward}) {
            const plan::Verdict verdict =
                plan::verify(make_plan(problem, {.strategy = name, .pieces = pieces, .ranks_per_node = node}, pass));
            ASSERT_TRUE(verdict.ok()) << name << " of " << ranks << " ranks, pieces " << pieces << ", node " << node << ": "
                                      << verdict.failures.front();
            ++proven;
          }
        }
      }
    }
  }
  EXPECT_GT(proven, 150);
}

TEST(Ring, OptionsThatCannotBeFollowedAreRefused) {
  const auto message = [](const AttentionOptions& options) -> std::string {
    try {
      make_plan(problem_of(4), options, Pass::forward);
    } catch (const InvalidArgument& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_NE(message({.pieces = 3}).find("3 pieces of 2 KV heads; use at most 2"), std::string::npos);
  EXPECT_NE(message({.ranks_per_node = 2}).find("it has no use for the option ranks_per_node"), std::string::npos);
  EXPECT_NE(message({.strategy = "double_ring", .ranks_per_node = 3}).find("4 ranks are not a multiple of 3"), std::string::npos);
  EXPECT_NE(message({.stages = 2}).find("stages"), std::string::npos);
}

}  // namespace
}  // namespace periplus::strategy
