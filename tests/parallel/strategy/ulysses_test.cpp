#include "parallel/strategy/ulysses.h"

#include <algorithm>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "parallel/plan/ops.h"
#include "parallel/plan/verify.h"
#include "runtime/comm/thread_transport.h"
#include "runtime/error.h"
#include "tests/parallel/attention_cases.h"
#include "tests/parallel/plan/plan_cases.h"

namespace periplus::strategy {
namespace {

using test::Lengths;

const AttentionOptions kUlysses{.strategy = "ulysses"};

AttentionProblem problem_of(int ranks, int q_heads, int kv_heads, LayoutKind layout = LayoutKind::zigzag) {
  return test::ring_problem(layout, ranks, {0, 16 * ranks}, {}, q_heads, kv_heads);
}

/// Steps in short: the op, for exchanges with lane and peers in the order they are sent to.
std::vector<std::string> steps(const AttentionProblem& problem, const AttentionOptions& options, Pass pass, int rank) {
  const plan::Program program = make_program(problem, options, pass, rank);
  std::vector<std::string> all;
  for (const plan::Step& step : program.steps) {
    std::string text(plan::info(step.op).name);
    if (step.op == plan::Op::exchange) text = fmt::format("{}:", step.lane);
    int last = -1;
    for (const plan::Message& m : program.sends_of(step)) {
      if (m.peer != last) text += fmt::format(" {}", m.peer);
      last = m.peer;
    }
    if (all.empty() || all.back() != text) all.push_back(text);
  }
  return all;
}
using Steps = std::vector<std::string>;

TEST(Ulysses, TradesRowsAttendsOnceAndTradesBack) {
  EXPECT_EQ(steps(problem_of(4, 4, 4), kUlysses, Pass::forward, 1),
            (Steps{"copy", "0: 2 3 0", "copy", "attend", "finish", "1: 2 3 0", "copy"}));
  EXPECT_EQ(steps(problem_of(4, 4, 4), kUlysses, Pass::backward, 1),
            (Steps{"delta", "copy", "0: 2 3 0", "copy", "attend_backward", "1: 2 3 0", "copy"}));
  EXPECT_EQ(steps(problem_of(4, 4, 2), kUlysses, Pass::backward, 1),
            (Steps{"delta", "copy", "0: 2 3 0", "copy", "attend_backward", "1: 2 3 0", "copy", "add", "copy", "add", "copy", "add", "copy",
                   "add"}))
      << "two ranks use one KV head: their gradients are added";
}

TEST(Ulysses, RanksBeyondTheHeadsOnlyLendTheirRows) {
  // Of four ranks with two heads, 1 and 3 get one each.
  EXPECT_EQ(steps(problem_of(4, 2, 1), kUlysses, Pass::forward, 0), (Steps{"copy", "0: 1 3", "1:", "copy"}));
  EXPECT_EQ(steps(problem_of(4, 2, 1), kUlysses, Pass::forward, 1),
            (Steps{"copy", "0: 3", "copy", "attend", "finish", "1: 2 3 0", "copy"}));
}

TEST(Usp, HeadGroupsSurroundARing) {
  const AttentionProblem problem = problem_of(6, 2, 2);
  // Rank 3 shares heads with rank 2 and has rank 5 behind it in the ring, or with rank 0 and 4.
  EXPECT_EQ(steps(problem, {.strategy = "usp", .head_ranks = 2}, Pass::forward, 3),
            (Steps{"copy", "0: 2", "copy", "0: 5", "attend", "0: 5", "attend", "finish", "1: 2", "copy"}));
  EXPECT_EQ(steps(problem, {.strategy = "usp", .head_ranks = 2, .placement = "context_first"}, Pass::forward, 3),
            (Steps{"copy", "0: 0", "copy", "0: 4", "attend", "0: 4", "attend", "finish", "1: 0", "copy"}));
}

TEST(Usp, OfOneGroupIsUlyssesAndOfGroupsOfOneTheRing) {
  const AttentionProblem problem = problem_of(4, 8, 2);
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    for (int rank = 0; rank < 4; ++rank)
      EXPECT_EQ(steps(problem, {.strategy = "usp", .head_ranks = 4}, pass, rank), steps(problem, kUlysses, pass, rank));
    const auto bytes = [&](const AttentionOptions& options) { return make_plan(problem, options, pass).claim.bytes_sent; };
    EXPECT_EQ(bytes({.strategy = "usp", .head_ranks = 4}), bytes(kUlysses));
    EXPECT_EQ(bytes({.strategy = "usp", .head_ranks = 1}), bytes({}));
  }
}

TEST(Ulysses, BytesAreThoseOfThePaperAndLse) {
  // algorithms.md 4.3, even heads and lengths: (P-1)/P n (d Hq + d Hkv + e Hkv + e Hq) per rank, and lse, which it leaves out.
  const std::int64_t p = 4, tokens = 64, d = 8, e = 8, q_heads = 8, kv_heads = 4;
  const std::int64_t elements = tokens * (d * q_heads + (d + e) * kv_heads + e * q_heads), lse = tokens * q_heads;
  EXPECT_EQ(make_plan(problem_of(4, 8, 4), kUlysses, Pass::forward).claim.bytes_sent, (elements + lse) * 4 * (p - 1) / p);
}

void expect_proven(const AttentionProblem& problem, const AttentionOptions& options) {
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    const plan::Verdict verdict = plan::verify(make_plan(problem, options, pass));
    ASSERT_TRUE(verdict.ok()) << options.strategy << " " << options.head_ranks << " " << options.placement << ", " << problem.layout.ranks()
                              << " ranks, heads " << problem.q_heads << "/" << problem.kv_heads << ", " << to_string(problem.layout.kind())
                              << ": " << verdict.failures.front();
  }
}

TEST(Ulysses, EveryHeadCountIsProvenOnEveryRankCount) {
  for (const int ranks : {1, 2, 3, 4, 5, 6, 8}) {
    for (int q_heads = 1; q_heads <= 16; ++q_heads) {
      for (int kv_heads = 1; kv_heads <= q_heads; ++kv_heads) {
        if (q_heads % kv_heads != 0) continue;
        const LayoutKind layout = test::kLayoutKinds[static_cast<std::size_t>(q_heads + kv_heads) % 4];
        AttentionProblem problem = test::ring_problem(layout, ranks, {0, 1, 2, 3, 40, 41, 41, 60, 97}, {}, q_heads, kv_heads);
        problem.value_size = 5, problem.sink = q_heads % 3 == 0, problem.contiguous_kv = q_heads % 2 == 0;
        problem.dtype = kv_heads % 2 == 0 ? DType::f32 : DType::bf16;
        expect_proven(problem, kUlysses);
      }
    }
  }
}

TEST(Usp, EveryGridIsProven) {
  for (const int ranks : {1, 2, 3, 4, 6, 8, 12}) {
    for (int head_ranks = 0; head_ranks <= ranks; ++head_ranks) {
      if (head_ranks > 0 && ranks % head_ranks != 0) continue;
      for (const char* placement : {"head_first", "context_first"}) {
        for (const auto& [q_heads, kv_heads] : {std::pair(1, 1), std::pair(8, 2), std::pair(6, 3), std::pair(5, 5)}) {
          for (const LayoutKind layout : test::kLayoutKinds) {
            AttentionProblem problem = test::ring_problem(layout, ranks, {0, 1, 20, 21, 60, 97}, {}, q_heads, kv_heads);
            problem.sink = q_heads == 6, problem.contiguous_kv = q_heads != 5, problem.dtype = q_heads == 8 ? DType::bf16 : DType::f32;
            expect_proven(problem, {.strategy = "usp", .head_ranks = head_ranks, .placement = placement});
          }
        }
      }
    }
  }
}

TEST(Ulysses, AHundredDocumentsAreAHundredBands) {
  const AttentionProblem problem = test::ring_problem(LayoutKind::document_zigzag, 64, test::borders(Lengths(100, 640)), {}, 64, 8);
  EXPECT_EQ(make_program(problem, kUlysses, Pass::forward, 5).bands.size(), 100u);
  EXPECT_LT(make_program(problem, {.strategy = "usp", .head_ranks = 8}, Pass::forward, 5).bands.size(), 100u * 8 * 4);
}

/// Where every token sees only itself, out is its value and dv the sum of dout over the query heads: what is traded comes
/// home. Bit by bit, since the reference does the same sums; over several query heads it may add in another order.
void expect_identity(const test::AttentionCase& c, int ranks) {
  const Memory memory;
  const test::AttentionOracle oracle = test::make_oracle(c, memory);
  comm::run_thread_ranks(ranks, [&](comm::Communicator communicator) {
    const test::AttentionErrors errors = test::run_case(c, oracle, DType::f64, communicator);
    EXPECT_EQ(errors.forward, 0) << ranks << " ranks, " << to_string(c);
    EXPECT_LE(errors.backward, c.q_heads == c.kv_heads ? 0 : 1e-14) << ranks << " ranks, " << to_string(c);
  });
}

TEST(Ulysses, WhatIsTradedComesHomeBitByBit) {
  std::vector<AttentionOptions> all{kUlysses};
  for (const char* placement : {"head_first", "context_first"}) all.push_back({.strategy = "usp", .head_ranks = 2, .placement = placement});
  test::AttentionCase c;
  c.cu_seqlens = {0, 1, 2, 3, 40, 41, 41, 60, 97};
  c.mask.window_left = 0;
  for (const int ranks : {1, 2, 3, 4, 5, 8}) {
    for (const auto& [q_heads, kv_heads] : {std::pair(2, 1), std::pair(6, 6), std::pair(7, 7), std::pair(16, 4)}) {
      c.q_heads = q_heads, c.kv_heads = kv_heads;
      for (const LayoutKind layout : test::kLayoutKinds) {
        c.layout = layout;
        for (const AttentionOptions& options : all) {
          c.options = options;
          if (test::refusal(c, ranks).empty()) expect_identity(c, ranks);
        }
      }
    }
  }
}

TEST(Usp, GridsThatDoNotFitAreRefused) {
  const auto message = [](const AttentionOptions& options) -> std::string {
    try {
      make_plan(problem_of(6, 4, 2), options, Pass::forward);
    } catch (const InvalidArgument& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_NE(message({.strategy = "usp", .head_ranks = 4}).find("6 ranks are not a multiple of 4 head_ranks; use a divisor such as 3"),
            std::string::npos);
  EXPECT_NE(message({.strategy = "ulysses", .head_ranks = 2}).find("it has no use for the option head_ranks"), std::string::npos);
  EXPECT_NE(message({.strategy = "ulysses", .pieces = 2}).find("2 pieces, but some rank has 1 KV heads; use at most that many"),
            std::string::npos);
}

}  // namespace
}  // namespace periplus::strategy
