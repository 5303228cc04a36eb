// What the strategies of linear attention send, when, and what they refuse.
#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "parallel/execute/rehearse.h"
#include "parallel/linear_attention.h"
#include "parallel/plan/ops.h"
#include "parallel/plan/print.h"
#include "parallel/simulate/simulate.h"
#include "runtime/error.h"
#include "tests/parallel/linear_cases.h"

namespace periplus {
namespace {

using plan::Op;

LinearAttentionProblem problem_of(LayoutKind layout, int ranks, const std::vector<std::int64_t>& cu) {
  LinearAttentionProblem problem{SequenceLayout::make(layout, ranks, cu)};
  problem.heads = 6, problem.head_size = 8, problem.value_size = 4, problem.dtype = DType::bf16, problem.decay = Decay::diagonal;
  return problem;
}

std::int64_t bytes_of(const LinearAttentionProblem& problem, std::string strategy, Pass pass) {
  const plan::Plan plan = make_plan(problem, {.strategy = std::move(strategy)}, pass);
  std::int64_t sum = 0;
  for (const plan::Program& program : plan.programs) sum += program.bytes_sent();
  EXPECT_EQ(sum, plan.claim.bytes_sent);
  return sum;
}

TEST(LinearBytes, FollowTheClosedFormulas) {
  const std::int64_t d = 8, e = 4, heads = 6, ranks = 4, f32 = 4;
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    for (const std::int64_t tokens : {64, 4096}) {  // they do not grow with the sequence
      LinearAttentionProblem contiguous = problem_of(LayoutKind::contiguous, 4, {0, tokens});
      LinearAttentionProblem zigzag = problem_of(LayoutKind::zigzag, 4, {0, tokens});
      // The last zigzag rank's chunks are neighbours: one unit.
      EXPECT_EQ(bytes_of(contiguous, "lasp2", pass), (ranks - 1) * heads * (d * e + d) * f32 * ranks);
      EXPECT_EQ(bytes_of(zigzag, "lasp2", pass), (ranks - 1) * heads * (d * e + d) * f32 * (2 * ranks - 1));
      for (const char* chain : {"lasp", "all_scan"}) {
        EXPECT_EQ(bytes_of(contiguous, chain, pass), (ranks - 1) * heads * d * e * f32);
        EXPECT_EQ(bytes_of(zigzag, chain, pass), (2 * ranks - 2) * heads * d * e * f32);
      }
      contiguous.delta_rule = true, contiguous.dtype = DType::f64;
      EXPECT_EQ(bytes_of(contiguous, "lasp2", pass), (ranks - 1) * heads * (d * e + d * d) * 8 * ranks);
      EXPECT_EQ(bytes_of(contiguous, "lasp", pass), (ranks - 1) * heads * d * e * 8);
      const std::int64_t again = pass == Pass::forward ? d * d : 0;
      EXPECT_EQ(make_plan(contiguous, {.keep_transitions = true}, pass).claim.bytes_sent,
                (ranks - 1) * heads * (d * e + again) * 8 * ranks);
    }
    LinearAttentionProblem both = problem_of(LayoutKind::zigzag, 4, {0, 64});
    both.bidirectional = both.normalise = true;
    EXPECT_EQ(bytes_of(both, "lasp2", pass), 2 * (ranks - 1) * heads * (d * (e + 1) + d) * f32 * (2 * ranks - 1));
    EXPECT_EQ(bytes_of(both, "lasp", pass), 2 * (2 * ranks - 2) * heads * d * (e + 1) * f32);
    // Nothing crosses the border of a document, and nothing is gathered where no state passes.
    EXPECT_EQ(bytes_of(problem_of(LayoutKind::contiguous, 4, {0, 16, 64}), "lasp", pass), 2 * heads * d * e * f32);
    EXPECT_EQ(bytes_of(problem_of(LayoutKind::contiguous, 4, {0, 16, 32, 48, 64}), "lasp2", pass), 0);
    EXPECT_EQ(bytes_of(problem_of(LayoutKind::contiguous, 4, {0, 16, 32, 48, 64}), "all_scan", pass), 0);
    // Ranks without tokens take no part.
    EXPECT_EQ(bytes_of(problem_of(LayoutKind::contiguous, 4, {0, 2}), "lasp2", pass), 1 * heads * (d * e + d) * f32 * 2);
  }
}

simulate::Timeline timeline(LayoutKind layout, const LinearAttentionOptions& options, Pass pass, double states, double apply,
                            double message) {
  const plan::Plan plan = make_plan(problem_of(layout, 4, {0, 64}), options, pass);
  return simulate::simulate(plan, {[=](const plan::Program&, const plan::Step& step) {
                                     if (step.op == Op::unit_states || step.op == Op::unit_states_backward) return states;
                                     return step.op == Op::unit_apply || step.op == Op::unit_apply_backward ? apply : 0.0;
                                   },
                                   {.inside = {.latency_seconds = message}}});
}

TEST(LinearSchedule, GathersOfGroupsHideBehindTheirNeighbours) {
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    for (const LayoutKind layout : {LayoutKind::contiguous, LayoutKind::zigzag}) {
      const simulate::Timeline three = timeline(layout, {}, pass, 1, 2, 1);
      EXPECT_DOUBLE_EQ(three.makespan, 3 * (1 + 2));
      for (const simulate::RankTime& rank : three.ranks) EXPECT_DOUBLE_EQ(rank.exposed, 0);
      EXPECT_DOUBLE_EQ(timeline(layout, {.pieces = 1}, pass, 1, 2, 1).ranks[1].exposed, 1);
      // Bound by latency: the gathers wait side by side.
      EXPECT_DOUBLE_EQ(timeline(layout, {}, pass, 1, 2, 5).makespan, 1 + 5 + 3 * 2);
    }
  }
}

TEST(LinearSchedule, ChainsTakeAMessagePerHopAndSlicesFollowEachOther) {
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    EXPECT_DOUBLE_EQ(timeline(LayoutKind::contiguous, {.strategy = "lasp"}, pass, 0, 0, 1).makespan, 3);
    EXPECT_DOUBLE_EQ(timeline(LayoutKind::zigzag, {.strategy = "lasp"}, pass, 0, 0, 1).makespan, 6);
    EXPECT_DOUBLE_EQ(timeline(LayoutKind::contiguous, {.strategy = "all_scan", .pieces = 3}, pass, 0, 0, 1).makespan, 3 + 2);
    EXPECT_DOUBLE_EQ(timeline(LayoutKind::zigzag, {.strategy = "all_scan", .pieces = 3}, pass, 0, 0, 1).makespan, 6 + 2);
    // The recurrence of a slice fills the time until the next comes: the last rank waits for three hops, then never.
    EXPECT_DOUBLE_EQ(timeline(LayoutKind::contiguous, {.strategy = "all_scan", .pieces = 3}, pass, 0, 2, 1).makespan, 3 + 3 * 2);
  }
}

TEST(LinearPlans, CanBeRehearsed) {
  for (const char* strategy : {"lasp2", "lasp", "all_scan"}) {
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      const plan::Plan plan = make_plan(problem_of(LayoutKind::zigzag, 3, {0, 20, 42}), {.strategy = strategy}, pass);
      EXPECT_EQ(execute::rehearse(plan, std::nullopt, {}).total_bytes_sent(), plan.claim.bytes_sent);
    }
  }
}

TEST(LinearPlans, OneRankMakesNoElements) {
  for (LinearAttentionOptions options : test::linear_variants()) {
    options.keep_transitions = false;
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      const plan::Program program = make_program(problem_of(LayoutKind::zigzag, 1, {0, 20, 42}), options, pass, 0);
      for (const plan::Step& step : program.steps) {
        EXPECT_TRUE(step.op == Op::unit_scan || step.op == Op::unit_apply || step.op == Op::unit_apply_backward);
        if (options.pieces == 0) {
          EXPECT_EQ(program.accesses_of(step)[0].view.heads, 6) << "no groups without messages";
        }
      }
    }
  }
}

TEST(LinearPlans, FlopsAreThoseOfTheRunsInChunks) {
  LinearAttentionProblem problem = problem_of(LayoutKind::contiguous, 2, {0, 24, 64});
  problem.decay = Decay::scalar;
  const auto flops = [&](Op op, Pass pass, int rank) {
    const plan::Program program = make_program(problem, {.pieces = 1}, pass, rank);
    double sum = 0;
    for (const plan::Step& step : program.steps) sum += step.op == op ? plan::flops(program, step) : 0;
    return sum;
  };
  const double d = 8, e = 4, heads = 6, c = 64;
  EXPECT_DOUBLE_EQ(flops(Op::unit_states, Pass::forward, 0), heads * 8 * 2 * d * e) << "only the run that leaves";
  EXPECT_DOUBLE_EQ(flops(Op::unit_states_backward, Pass::backward, 0), 0) << "nothing enters";
  EXPECT_DOUBLE_EQ(flops(Op::unit_states_backward, Pass::backward, 1), heads * 32 * 2 * d * e);
  EXPECT_DOUBLE_EQ(flops(Op::unit_apply, Pass::forward, 0), heads * 32 * (4 * d * e + 2 * c * (d + e)));
  EXPECT_DOUBLE_EQ(flops(Op::unit_scan, Pass::forward, 1), heads * 2 * d * e);
  EXPECT_DOUBLE_EQ(flops(Op::unit_scan, Pass::forward, 0), 0);
  problem.decay = Decay::none;
  EXPECT_DOUBLE_EQ(flops(Op::unit_scan, Pass::forward, 1), heads * d * e);
  problem.delta_rule = true;
  EXPECT_DOUBLE_EQ(flops(Op::unit_scan, Pass::forward, 1), heads * (2 * d * d * e + d * e));
  EXPECT_GT(flops(Op::unit_apply, Pass::forward, 0), 1.5 * heads * 32 * (4 * d * e + 2 * c * (d + e)));
}

TEST(LinearPlans, TextAndJsonNameRunsFoldsAndTransitions) {
  const plan::Plan plan = make_plan(problem_of(LayoutKind::zigzag, 3, {0, 20, 42}), {}, Pass::backward);
  const std::string text = plan::to_text(plan.programs[1]);
  for (const char* part :
       {"unit_states_backward", "elements 0", "runs 2 diagonal", "unit_scan", "fold 2:3 to 0 fold 4:5 to 1", "diagonal reverse",
        "unit_apply_backward", "doutgoing:r=doutgoing.0[0:2]", "dlog_decay:w=dlog_decay[0:14, heads 0:2]"}) {
    EXPECT_NE(text.find(part), std::string::npos) << "no '" << part << "' in\n" << text;
  }
  const auto json = nlohmann::json::parse(plan::to_json(plan.programs[1]));
  int scans = 0, recurrences = 0;
  for (const auto& step : json["steps"]) {
    if (step["op"] == "unit_scan") {
      EXPECT_TRUE(step["reverse"]);
      EXPECT_EQ(step["folds"][0]["end"], 3);
      ++scans;
    }
    if (step["op"] == "unit_apply_backward") {
      EXPECT_EQ(step["runs"].size(), 2);
      EXPECT_EQ(step["transition"], "diagonal");
      ++recurrences;
    }
  }
  EXPECT_EQ(scans, 3);
  EXPECT_EQ(recurrences, 3);
}

TEST(LinearRefusals, SayWhatToChoose) {
  const auto expect = [](const LinearAttentionProblem& problem, const LinearAttentionOptions& options, std::string_view part) {
    try {
      make_plan(problem, options, Pass::forward);
      ADD_FAILURE() << "accepted where '" << part << "' was expected";
    } catch (const InvalidArgument& error) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  };
  LinearAttentionProblem problem = problem_of(LayoutKind::contiguous, 2, {0, 64});
  expect(problem, {.strategy = "spiral"}, "strategy 'spiral' is not known; there are: lasp2, lasp, all_scan");
  expect(problem, {.strategy = "lasp", .pieces = 2}, "no use for the option pieces");
  expect(problem, {.pieces = 7}, "7 pieces of 6 heads; use 1 to 6");
  expect(problem, {.strategy = "all_scan", .pieces = -1}, "-1 pieces");
  expect(problem_of(LayoutKind::striped, 2, {0, 64}), {}, "layout striped cuts the tokens of a rank into up to 32 units");
  expect(problem_of(LayoutKind::document_zigzag, 2, {0, 20, 40, 64}), {.strategy = "lasp"}, "use layout zigzag or contiguous");
  EXPECT_NO_THROW(make_plan(problem_of(LayoutKind::striped, 2, {0, 8}), {.any_layout = true}, Pass::forward));
  expect(problem, {.keep_transitions = true}, "for next to nothing but in the delta rule; leave keep_transitions out");
  problem.delta_rule = true;
  expect(problem, {.strategy = "lasp", .keep_transitions = true}, "gathers no transitions that could be kept");
  problem.bidirectional = true;
  expect(problem, {}, "the delta rule is not bidirectional");
  problem.bidirectional = false, problem.normalise = true;
  expect(problem, {}, "the delta rule has no normaliser");
  problem.delta_rule = false, problem.epsilon = -1;
  expect(problem, {}, "epsilon is -1; use a number from 0 on");
  problem.normalise = false, problem.epsilon = 0;
  problem.heads = 0;
  expect(problem, {}, "0 heads");
  problem.heads = 2, problem.head_size = 0;
  expect(problem, {}, "head size 0 must be positive");
  problem.head_size = 8, problem.dtype = DType::i32;
  expect(problem, {}, "dtype i32 is not supported");
}

}  // namespace
}  // namespace periplus
