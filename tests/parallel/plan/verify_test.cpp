// Plans with one fault each, and what the verdict says.
#include "parallel/plan/verify.h"

#include <functional>

#include <gtest/gtest.h>

#include "parallel/plan/builder.h"
#include "parallel/plan/ops.h"
#include "tests/parallel/plan/plan_cases.h"

namespace periplus::plan {
namespace {

using test::Lengths;

Plan ring_plan(int ranks = 3, Pass pass = Pass::forward) {
  return make_plan(test::ring_problem(LayoutKind::zigzag, ranks, {0, 48}), {}, pass);
}

void expect_failure(const Plan& plan, std::string_view part) {
  const Verdict verdict = verify(plan);
  std::string all;
  for (const std::string& failure : verdict.failures) all += failure + "\n";
  EXPECT_NE(all.find(part), std::string::npos) << (all.empty() ? "the plan was proven" : all) << "instead of: " << part;
}

/// The ring of three ranks, zigzag, 16 rows each; steps: 0 exchange, 1 hop 0, 2 exchange, 3 hop 1, 4 hop 2, 5 finish.
void expect_rejected(const std::function<void(Plan&)>& damage, std::string_view part, Pass pass = Pass::forward) {
  Plan plan = ring_plan(3, pass);
  ASSERT_TRUE(verify(plan).ok());
  damage(plan);
  expect_failure(plan, part);
}

Message& first_send(Program& program, std::size_t step) { return program.sends[program.steps[step].sends.begin]; }
Message& first_receive(Program& program, std::size_t step) { return program.receives[program.steps[step].receives.begin]; }
Access& access(Program& program, std::size_t step, int operand) {
  return program.accesses[program.steps[step].accesses.begin + static_cast<std::uint32_t>(operand)];
}

TEST(VerifyMessages, FaultsNameRankStepAndPeer) {
  expect_rejected([](Plan& p) { p.programs[1].steps[2].receives.count = 1; },
                  "rank 0 step 2: sends 1024 bytes to rank 1 in phase 1, which does not receive them");
  expect_rejected([](Plan& p) { p.programs[0].steps[2].sends.count = 1; },
                  "rank 1 step 2: receives 1024 bytes from rank 0 in phase 1, which does not send them");
  expect_rejected(
      [](Plan& p) { first_send(p.programs[2], 0).view.rows = 15; },
      "rank 2 step 0 sends 960 bytes of f32 on lane 0 in rows of 2 heads of 8 to rank 0 step 0, which receives 1024 bytes of f32 "
      "on lane 0 in rows of 2 heads of 8");
  expect_rejected(
      [](Plan& p) {
        Slot& slot = p.programs[0].slots[static_cast<std::size_t>(first_receive(p.programs[0], 0).view.slot)];
        slot.dtype = DType::i32;
      },
      "operand k of attend is i32 where f32 is needed");
  expect_rejected([](Plan& p) { p.programs[1].steps[0].lane = 1; },
                  "rank 0 step 0 sends 1024 bytes of f32 on lane 0 in rows of 2 heads of 8 to rank 1 step 0");
  expect_rejected([](Plan& p) { p.programs[1].steps[2].phase = 2; }, "rank 0 step 2: sends 1024 bytes to rank 1 in phase 1");
}

/// Moves a scratch slot behind all others, where it may grow.
void move_to_the_end(Program& program, Slot& slot) {
  slot.offset = program.workspace_bytes;
  program.workspace_bytes += (slot.bytes() + 255) / 256 * 256;
}

/// Each end calls the same bytes something else: the rows of one are not those of the other.
TEST(VerifyMessages, RowsHaveAsManyHeadsOnBothEnds) {
  Plan plan = ring_plan(2);
  for (Program& program : plan.programs) {
    for (Slot& slot : program.slots) {
      if (slot.name != "k.0" && slot.name != "v.0") continue;
      slot.heads *= 2;
      move_to_the_end(program, slot);
    }
    for (Message& message : program.receives) message.view.rows /= 2, message.view.heads *= 2;
  }
  expect_failure(plan, "in rows of 2 heads of 8 to rank 1 step 0, which receives 1536 bytes of f32 on lane 0 in rows of 4 heads of 8");
}

TEST(VerifyForm, LogSumsAreOneNumber) {
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    expect_rejected(
        [](Plan& p) {
          for (Slot& slot : p.programs[1].slots) {
            if (!slot.name.ends_with("lse")) continue;
            slot.width = 2;
            if (slot.role == Role::scratch) move_to_the_end(p.programs[1], slot);
          }
        },
        "lse is 2 wide instead of 1", pass);
  }
}

TEST(VerifyForm, FaultsNameRankAndStep) {
  expect_rejected([](Plan& p) { p.programs[1].steps[2].phase = 0; }, "rank 1 step 2: phase 0 does not rise above 0");
  expect_rejected([](Plan& p) { p.programs[1].steps[2].lane = kPlanLanes; }, "rank 1 step 2: lane 3 does not exist");
  expect_rejected([](Plan& p) { p.programs[2].after[p.programs[2].steps[3].after.begin] = 4; },
                  "rank 2 step 3: waits for step 4, which is not earlier");
  expect_rejected([](Plan& p) { p.programs[2].after[p.programs[2].steps[3].after.begin] = 3; },
                  "rank 2 step 3: waits for step 3, which is not earlier");
  expect_rejected([](Plan& p) { first_send(p.programs[0], 0).peer = 0; }, "rank 0 step 0: a send has peer 0 of 3 ranks");
  expect_rejected([](Plan& p) { first_send(p.programs[0], 0).peer = 3; }, "rank 0 step 0: a send has peer 3 of 3 ranks");
  expect_rejected([](Plan& p) { first_send(p.programs[0], 0).view.row0 = 1; }, "rank 0 step 0: a send takes rows 1+16 heads 0+2 of 'k'");
  expect_rejected([](Plan& p) { first_send(p.programs[0], 0).view.heads = 1; }, "a send is not a contiguous part of 'k' with all heads");
  expect_rejected([](Plan& p) { p.programs[0].slots[1].contiguous = false; }, "a send is not a contiguous part of 'k'");
  expect_rejected([](Plan& p) { first_receive(p.programs[0], 0).view.slot = p.programs[0].find_slot("v"); },
                  "rank 0 step 0: receives into the input 'v'");
  expect_rejected([](Plan& p) { access(p.programs[0], 1, attend_operand::q).view = {}; }, "rank 0 step 1: attend lacks operand q");
  expect_rejected([](Plan& p) { access(p.programs[0], 1, attend_operand::q).view.slot = 99; }, "q names slot 99, which does not exist");
  expect_rejected([](Plan& p) { access(p.programs[0], 1, attend_operand::q).mode = Mode::add; },
                  "rank 0 step 1: operand q of attend has mode a");
  expect_rejected([](Plan& p) { access(p.programs[0], 5, finish_operand::out).view.slot = p.programs[0].find_slot("q"); },
                  "rank 0 step 5: writes the input 'q'");
  expect_rejected([](Plan& p) { access(p.programs[0], 1, attend_operand::v).view.rows = 15; }, "rank 0 step 1: k and v differ in shape");
  expect_rejected([](Plan& p) { p.programs[0].bands[p.programs[0].steps[1].bands.begin].q1 = 17; }, "rank 0 step 1: band q 0:17");
  expect_rejected([](Plan& p) { --p.programs[1].steps[1].accesses.count; }, "rank 1 step 1: attend has 4 operands instead of 5");
  expect_rejected([](Plan& p) { p.programs[0].slots.back().offset += 8; }, "does not fit the workspace");
  expect_rejected([](Plan& p) { p.programs[0].workspace_bytes -= 256; }, "does not fit the workspace");
  expect_rejected([](Plan& p) { p.programs.pop_back(); }, "2 programs for a layout of 3 ranks");
  expect_rejected([](Plan& p) { std::swap(p.programs[0], p.programs[1]); }, "program 0 says it is of rank 1");
}

TEST(VerifyForm, RangesOutsideTheirPoolsAreRejected) {
  expect_rejected([](Plan& p) { p.programs[1].steps[1].bands.count = 1000; }, "rank 1 step 1: ranges leave the pools");
  expect_rejected([](Plan& p) { p.programs[1].steps[1].accesses.begin = 4000000000u; }, "rank 1 step 1: ranges leave the pools");
  expect_rejected([](Plan& p) { p.programs[1].steps[2].sends.count = 1000; }, "rank 1 step 2: ranges leave the pools");
  expect_rejected([](Plan& p) { p.programs[1].steps[1].sends = {0, 1}; }, "rank 1 step 1: attend has messages");
}

TEST(VerifyForm, EveryOperandOfDeltaHasItsShape) {
  AttentionProblem problem = test::ring_problem(LayoutKind::zigzag, 2, {0, 48});
  problem.sink = problem.lse_gradient = true;
  const Plan good = make_plan(problem, {}, Pass::backward);
  ASSERT_TRUE(verify(good).ok());
  for (int operand = 0; operand < 7; ++operand) {
    for (const bool rows : {true, false}) {
      Plan plan = good;
      Program& program = plan.programs[1];
      ASSERT_EQ(program.steps[0].op, Op::delta);
      View& view = access(program, 0, operand).view;
      --(rows ? view.rows : view.heads);
      expect_failure(plan, "rank 1 step 0: ");
    }
  }
}

TEST(VerifyRaces, AMissingDependencyIsARace) {
  expect_rejected([](Plan& p) { p.programs[1].steps[3].after.count = 0; }, "rank 1 step 3: touches 'k.0' while step 0 may still use it");
  expect_rejected(
      [](Plan& p) {
        p.programs[1].slots[static_cast<std::size_t>(p.programs[1].find_slot("k.1"))].offset =
            p.programs[1].slots[static_cast<std::size_t>(p.programs[1].find_slot("k.0"))].offset;
      },
      "rank 1: scratch 'k.0' and 'k.1' share workspace bytes but may be alive together");
  expect_rejected([](Plan& p) { access(p.programs[0], 1, attend_operand::q).view = access(p.programs[0], 1, attend_operand::out).view; },
                  "rank 0 step 1: two operands share rows of 'state.out' and one is written");
}

TEST(VerifyProvenance, WrongContentsAreTold) {
  expect_rejected([](Plan& p) { access(p.programs[0], 1, attend_operand::out).mode = Mode::add; },
                  "rank 0 step 1: reads rows 0+16 of 'state.out', of which 64 of 64 cells were never written");
  expect_rejected([](Plan& p) { std::swap(access(p.programs[0], 1, attend_operand::k), access(p.programs[0], 1, attend_operand::v)); },
                  "rank 0 step 1: 'v' holds v where k is needed");
  expect_rejected([](Plan& p) { access(p.programs[0], 3, attend_operand::v).view = access(p.programs[0], 1, attend_operand::v).view; },
                  "rank 0 step 3: k of rank 2 row 0 head 0 meets v of rank 0 row 0 head 0");
  expect_rejected([](Plan& p) { p.programs[0].steps[3].bands = p.programs[0].steps[1].bands; },
                  "rank 0 step 5: partial out of rank 0 rows 0+16 does not hold each (head, query, key) of the mask exactly once");
  expect_rejected([](Plan& p) { p.claim.bytes_sent += 4; }, "the plan sends 12288 bytes, its formula says 12292");
  expect_rejected([](Plan& p) { p.programs[2].slots[0].name = std::string("Q"); }, "rank 2: input 'Q' is not one the claim knows");
  expect_rejected([](Plan& p) { p.programs[2].slots[static_cast<std::size_t>(p.programs[2].find_slot("lse"))].name = "LSE"; },
                  "no slot is called 'lse'");
}

/// A plan of one rank over 8 tokens, 4 query heads and 2 KV heads, written by hand.
struct HandMade {
  Lengths cu{0, 8};
  Plan plan{{}, {SequenceLayout::make(LayoutKind::contiguous, 1, cu), Mask({}, cu), 4, 2}};
  ProgramBuilder builder{0};
  View q = builder.slot("q", Role::input, DType::f32, 8, 4, 4), k = builder.slot("k", Role::input, DType::f32, 8, 2, 4),
       v = builder.slot("v", Role::input, DType::f32, 8, 2, 4), out = builder.slot("out", Role::output, DType::f32, 8, 4, 4),
       lse = builder.slot("lse", Role::output, DType::f32, 8, 4, 1), state = builder.scratch("state", DType::f32, 8, 4, 4),
       state_lse = builder.scratch("state.lse", DType::f32, 8, 4, 1);
  const std::vector<Band> causal{{0, 8, 0, 8, -kUnbounded, 0}};

  static View part(View view, std::int64_t row0, std::int64_t rows, std::int64_t head0, std::int64_t heads) {
    return {view.slot, row0, rows, head0, heads};
  }
  void attend(View q_view, View k_view, View v_view, View to, View to_lse, std::span<const Band> bands, Mode mode = Mode::write) {
    builder.attend({"attend"}, {q_view, k_view, v_view, to, to_lse}, bands, 1, 0, mode);
  }
  void finish() { builder.finish({"finish"}, state, state_lse, {}, out, lse); }
  const Plan& done() {
    plan.programs.push_back(builder.build());
    return plan;
  }
};

TEST(VerifyProvenance, HandMadePlanIsProven) {
  HandMade whole;
  whole.attend(whole.q, whole.k, whole.v, whole.state, whole.state_lse, whole.causal);
  whole.finish();
  EXPECT_TRUE(verify(whole.done()).ok());

  HandMade by_head;
  for (const int g : {0, 1}) {
    const auto heads = [&](View view, std::int64_t n) { return HandMade::part(view, 0, 8, g * n, n); };
    by_head.attend(heads(by_head.q, 2), heads(by_head.k, 1), heads(by_head.v, 1), heads(by_head.state, 2), heads(by_head.state_lse, 2),
                   by_head.causal);
  }
  by_head.finish();
  const Verdict verdict = verify(by_head.done());
  EXPECT_TRUE(verdict.ok()) << verdict.failures.front();
}

TEST(VerifyProvenance, SplitBandsAndMergedPartsAreProven) {
  HandMade s;
  const View part = s.builder.scratch("part", DType::f32, 8, 4, 4), part_lse = s.builder.scratch("part.lse", DType::f32, 8, 4, 1);
  const std::vector<Band> left{{0, 8, 0, 5, -kUnbounded, 0}}, right{{5, 8, 5, 8, -kUnbounded, 0}};
  s.attend(s.q, s.k, s.v, s.state, s.state_lse, left);
  s.attend(s.q, s.k, s.v, part, part_lse, right);
  s.builder.merge({"merge"}, part, part_lse, s.state, s.state_lse);
  s.finish();
  const Verdict verdict = verify(s.done());
  EXPECT_TRUE(verdict.ok()) << verdict.failures.front();
}

TEST(VerifyProvenance, APairCountedTwiceOrNotAtAllIsTold) {
  HandMade twice;
  const std::vector<Band> again{{7, 8, 0, 1}};
  twice.attend(twice.q, twice.k, twice.v, twice.state, twice.state_lse, twice.causal);
  twice.attend(twice.q, twice.k, twice.v, twice.state, twice.state_lse, again, Mode::add);
  twice.finish();
  expect_failure(twice.done(),
                 "rank 0 step 2: partial out of rank 0 rows 0+8 does not hold each (head, query, key) of the mask exactly once (2");

  HandMade missing;
  const std::vector<Band> most{{0, 8, 0, 8, -6, 0}};
  missing.attend(missing.q, missing.k, missing.v, missing.state, missing.state_lse, most);
  missing.finish();
  expect_failure(missing.done(),
                 "rank 0 step 1: partial out of rank 0 rows 0+8 does not hold each (head, query, key) of the mask exactly once (1");
}

TEST(VerifyProvenance, AKvHeadOfAnotherGroupIsTold) {
  HandMade s;
  const auto heads = [](View view, std::int64_t head0, std::int64_t n) { return HandMade::part(view, 0, 8, head0, n); };
  s.attend(heads(s.q, 0, 2), heads(s.k, 1, 1), heads(s.v, 1, 1), heads(s.state, 0, 2), heads(s.state_lse, 0, 2), s.causal);
  s.attend(heads(s.q, 2, 2), heads(s.k, 0, 1), heads(s.v, 0, 1), heads(s.state, 2, 2), heads(s.state_lse, 2, 2), s.causal);
  s.finish();
  expect_failure(s.done(), "rank 0 step 0: query head 0 meets KV head 1 instead of 0");
}

/// Ulysses puts the rows of documents into sequence order, and back.
Plan plan_with_moves(LayoutKind layout = LayoutKind::document_zigzag, const Lengths& documents = Lengths(8, 12)) {
  return make_plan(test::ring_problem(layout, 3, test::borders(documents)), {.strategy = "ulysses"}, Pass::forward);
}

void expect_moves_rejected(const std::function<void(std::vector<RowMove>&)>& damage, std::string_view part,
                           const Plan& valid = plan_with_moves()) {
  Plan plan = valid;
  ASSERT_TRUE(verify(plan).ok());
  ASSERT_GE(plan.programs[1].moves.size(), 6u);
  damage(plan.programs[1].moves);
  expect_failure(plan, part);
}

TEST(VerifyMoves, EveryRowMovesOnceToItsPlace) {
  expect_moves_rejected([](std::vector<RowMove>& moves) { moves[1].to = moves[0].to; }, "moves 2 rows at");
  expect_moves_rejected([](std::vector<RowMove>& moves) { moves[1].rows -= 1; }, "moves");
  expect_moves_rejected([](std::vector<RowMove>& moves) { moves[1].rows = 0; }, "moves 0 rows");
  expect_moves_rejected([](std::vector<RowMove>& moves) { std::swap(moves[0].to, moves[1].to); },
                        "does not hold each (head, query, key) of the mask exactly once");
}

TEST(VerifyMoves, EveryRowOfAStripeMovesOnceToItsPlace) {
  const Plan plan = plan_with_moves(LayoutKind::striped, Lengths(8, 7));  // three moves there, three back
  ASSERT_EQ(plan.programs[1].moves.size(), 6u);
  const auto rejected = [&](const std::function<void(std::vector<RowMove>&)>& damage, std::string_view part) {
    expect_moves_rejected(damage, part, plan);
  };
  rejected([](std::vector<RowMove>& moves) { moves[1].to_stride = 4; }, "moves 19 rows at 19 to 1, strides 1 and 4, of 56 rows");
  rejected([](std::vector<RowMove>& moves) { moves[1].to_stride = 2; }, "moves 1 rows at 3 where 4 is next");
  rejected([](std::vector<RowMove>& moves) { moves[4].from_stride = 0; }, "moves 19 rows at 1 to 19, strides 0 and 1, of 56 rows");
  rejected([](std::vector<RowMove>& moves) { std::swap(moves[0].to, moves[1].to); },
           "does not hold each (head, query, key) of the mask exactly once");
}

TEST(VerifyMoves, OnlyCopiesMoveRows) {
  Plan plan = plan_with_moves();
  for (Step& step : plan.programs[0].steps) {
    if (step.op == Op::finish) step.moves = {0, 1};
  }
  expect_failure(plan, "finish moves rows");
}

TEST(VerifyProvenance, OutputRowsInAnotherPlaceAreTold) {
  for (const bool heads : {false, true}) {
    HandMade s;
    s.attend(s.q, s.k, s.v, s.state, s.state_lse, s.causal);
    const auto half = [&](View view, int i) { return heads ? HandMade::part(view, 0, 8, 2 * i, 2) : HandMade::part(view, 4 * i, 4, 0, 4); };
    for (const int i : {0, 1})
      s.builder.finish({"finish"}, half(s.state, i), half(s.state_lse, i), {}, half(s.out, 1 - i), half(s.lse, 1 - i));
    expect_failure(s.done(), heads ? "output 'out' row 0 head 0 holds row 0 head 2 of rank 0"
                                   : "output 'out' row 0 head 0 holds row 4 head 0 of rank 0");
  }
}

TEST(VerifyProvenance, AnOutputLeftUnwrittenIsTold) {
  HandMade s;
  s.attend(s.q, s.k, s.v, s.state, s.state_lse, s.causal);
  s.builder.finish({"finish"}, HandMade::part(s.state, 0, 7, 0, 4), HandMade::part(s.state_lse, 0, 7, 0, 4), {},
                   HandMade::part(s.out, 0, 7, 0, 4), HandMade::part(s.lse, 0, 7, 0, 4));
  expect_failure(s.done(), "reads rows 0+8 of 'out', of which 4 of 32 cells were never written");
}

TEST(VerifyProvenance, EverySinkMeetsItsOwnHead) {
  for (const bool right : {true, false}) {
    HandMade s;
    const View sink = s.builder.slot("sink", Role::input, DType::f32, 1, 4, 1);
    s.attend(s.q, s.k, s.v, s.state, s.state_lse, s.causal);
    for (const int i : {0, 1}) {
      const auto half = [&](View view, int of) { return HandMade::part(view, 0, view.rows, 2 * of, 2); };
      s.builder.finish({"finish"}, half(s.state, i), half(s.state_lse, i), half(sink, right ? i : 1 - i), half(s.out, i), half(s.lse, i));
    }
    if (right) {
      EXPECT_TRUE(verify(s.done()).ok());
    } else {
      expect_failure(s.done(), "rank 0 step 1: query head 0 meets the sink of head 2");
    }
  }
}

TEST(VerifyProvenance, DsinkSumsAllRowsOfItsHeads) {
  AttentionProblem problem = test::ring_problem(LayoutKind::contiguous, 2, {0, 16});
  problem.sink = true;
  Plan plan = make_plan(problem, {}, Pass::backward);
  Program& program = plan.programs[1];
  // The upper half of the rows in a step of its own would write dsink a second time; leaving it out is as wrong.
  for (int operand = delta_operand::dout; operand <= delta_operand::lse; ++operand) access(program, 0, operand).view.rows = 4;
  access(program, 0, delta_operand::delta).view.rows = 4;
  expect_failure(plan, "rank 1 step 0: dsink sums 4 rows of 8");
}

TEST(VerifyProvenance, OperandsOfBackwardInEachOthersPlaceAreTold) {
  expect_rejected([](Plan& p) { access(p.programs[0], 3, attend_backward_operand::dout).view.slot = p.programs[0].find_slot("out"); },
                  "rank 0 step 3: 'out' holds out where dout is needed", Pass::backward);
  expect_rejected([](Plan& p) { access(p.programs[0], 3, attend_backward_operand::lse).view.slot = p.programs[0].find_slot("delta"); },
                  "rank 0 step 3: 'delta' holds delta where lse is needed", Pass::backward);
}

}  // namespace
}  // namespace periplus::plan
