#include "parallel/plan/builder.h"

#include <algorithm>
#include <chrono>
#include <iostream>
#include <random>

#include <gtest/gtest.h>

#include "parallel/plan/arena.h"
#include "parallel/plan/ops.h"
#include "parallel/plan/verify.h"
#include "runtime/error.h"
#include "tests/parallel/plan/plan_cases.h"

namespace periplus::plan {
namespace {

using Steps = std::vector<StepId>;
using test::Lengths;

View rows(View view, std::int64_t row0, std::int64_t count) {
  view.row0 += row0;
  view.rows = count;
  return view;
}

Steps after(const Program& program, std::size_t step) {
  const auto ids = program.after_of(program.steps.at(step));
  return {ids.begin(), ids.end()};
}

/// A program of rank 0 with three scratch slots of 8 rows; rank 1 is the peer of every message.
struct Sketch {
  ProgramBuilder builder{0};
  View a = builder.scratch("a", DType::f32, 8, 2, 4), b = builder.scratch("b", DType::f32, 8, 2, 4),
       c = builder.scratch("c", DType::f32, 8, 2, 4);
  void send(View view, int lane = 0) { builder.exchange({"send"}, lane, std::vector<Message>{{1, view}}, {}); }
  void receive(View view, int lane = 0) { builder.exchange({"receive"}, lane, {}, std::vector<Message>{{1, view}}); }
  void copy(View from, View to) { builder.copy({"copy"}, from, to); }
};

TEST(ProgramBuilder, SlotsThatCannotBeCountedAreRefused) {
  constexpr std::int64_t kMany = std::int64_t{1} << 31;
  ProgramBuilder program(0);
  EXPECT_NO_THROW(program.scratch("large", DType::f32, kMany, 8, 64));
  EXPECT_THROW(program.scratch("larger", DType::f32, kMany, 64, 64), InvalidArgument);
  EXPECT_THROW(program.scratch("overflow", DType::f32, kMany, kMany, kMany), InvalidArgument);
}

TEST(ProgramBuilder, AccessesThatConflictAcrossQueuesWait) {
  Sketch read_after_write;
  read_after_write.receive(read_after_write.a);
  read_after_write.copy(read_after_write.a, read_after_write.b);
  EXPECT_EQ(after(read_after_write.builder.build(), 1), (Steps{0}));

  Sketch write_after_read;
  write_after_read.copy(write_after_read.a, write_after_read.b);
  write_after_read.receive(write_after_read.a);
  EXPECT_EQ(after(write_after_read.builder.build(), 1), (Steps{0}));

  Sketch write_after_write;
  write_after_write.copy(write_after_write.a, write_after_write.b);
  write_after_write.receive(write_after_write.b, 1);
  EXPECT_EQ(after(write_after_write.builder.build(), 1), (Steps{0}));

  Sketch add_after_send;
  add_after_send.send(add_after_send.b, 1);
  add_after_send.builder.add({"add"}, add_after_send.a, add_after_send.b);
  EXPECT_EQ(after(add_after_send.builder.build(), 1), (Steps{0}));

  Sketch between_lanes;
  between_lanes.receive(between_lanes.a, 0);
  between_lanes.send(between_lanes.a, 1);
  EXPECT_EQ(after(between_lanes.builder.build(), 1), (Steps{0}));
}

/// Two slots that were used side by side, and then one of them alone.
TEST(ProgramBuilder, SlotsThatWereUsedTogetherWaitEachForItself) {
  for (const bool first : {true, false}) {
    Sketch s;
    s.builder.exchange({"receive"}, 0, {}, std::vector<Message>{{1, s.a}, {1, s.b}});
    s.copy(first ? s.a : s.b, s.c);
    s.builder.exchange({"again"}, 0, {}, std::vector<Message>{{1, s.a}, {1, s.b}});
    s.copy(first ? s.b : s.a, s.c);
    s.builder.exchange({"first again"}, 1, {}, std::vector<Message>{{1, s.a}});
    s.builder.exchange({"second again"}, 1, {}, std::vector<Message>{{1, s.b}});
    const Program program = s.builder.build();
    EXPECT_EQ(after(program, 1), (Steps{0}));
    EXPECT_EQ(after(program, 2), (Steps{1}));
    EXPECT_EQ(after(program, 3), (Steps{2}));
    EXPECT_EQ(after(program, 4), first ? (Steps{2}) : (Steps{3}));
    EXPECT_EQ(after(program, 5), first ? (Steps{3}) : Steps{});
  }
}

TEST(ProgramBuilder, ReadsOfTheSameRowsDoNotWait) {
  Sketch s;
  s.copy(s.a, s.b);
  s.send(s.a);
  s.send(s.a, 1);
  const Program program = s.builder.build();
  EXPECT_TRUE(program.after.empty());
}

TEST(ProgramBuilder, StepsOfOneQueueNeverNameEachOther) {
  Sketch s;
  s.copy(s.a, s.b);
  s.copy(s.b, s.a);
  s.receive(s.c);
  s.send(s.c);
  EXPECT_TRUE(s.builder.build().after.empty());
}

TEST(ProgramBuilder, DependenciesThatFollowFromOthersAreNotWritten) {
  Sketch s;
  s.receive(s.a);     // 0
  s.copy(s.a, s.b);   // 1 waits for 0
  s.copy(s.a, s.c);   // 2: its queue already waited
  s.receive(s.a, 1);  // 3 waits for 2; so 1 and 0 have finished too
  const Program program = s.builder.build();
  EXPECT_EQ(after(program, 1), (Steps{0}));
  EXPECT_EQ(after(program, 2), (Steps{}));
  EXPECT_EQ(after(program, 3), (Steps{2}));
}

TEST(ProgramBuilder, OneStepMayWaitForEveryOtherQueue) {
  Sketch s;
  s.receive(rows(s.a, 0, 4), 0);
  s.receive(rows(s.a, 4, 4), 1);
  s.copy(s.a, s.b);
  Steps both = after(s.builder.build(), 2);
  std::sort(both.begin(), both.end());
  EXPECT_EQ(both, (Steps{0, 1}));
}

TEST(ProgramBuilder, ViewsThatDoNotMeetDoNotWait) {
  Sketch s;
  s.receive(rows(s.a, 0, 4));
  s.copy(rows(s.a, 4, 4), rows(s.b, 0, 4));
  const auto head = [](View view, std::int64_t h) { return View{view.slot, view.row0, view.rows, h, 1}; };
  s.receive(rows(s.c, 0, 4), 1);
  s.copy(head(rows(s.a, 4, 4), 0), head(rows(s.c, 4, 4), 1));
  s.copy(head(rows(s.a, 3, 4), 0), head(rows(s.b, 0, 4), 1));
  const Program program = s.builder.build();
  EXPECT_EQ(after(program, 1), (Steps{}));
  EXPECT_EQ(after(program, 3), (Steps{}));
  EXPECT_EQ(after(program, 4), (Steps{0})) << "row 3 was received";
}

TEST(ProgramBuilder, AWaitForAPartialWriteIsNotHiddenByALaterDisjointOne) {
  Sketch s;
  s.receive(rows(s.a, 0, 4), 0);
  s.receive(rows(s.a, 4, 4), 0);
  s.copy(rows(s.a, 0, 4), rows(s.b, 0, 4));
  s.copy(rows(s.a, 4, 4), rows(s.b, 4, 4));
  const Program program = s.builder.build();
  EXPECT_EQ(after(program, 2), (Steps{0}));
  EXPECT_EQ(after(program, 3), (Steps{1}));
}

TEST(ProgramBuilder, AWaitForAHiddenUseGoesThroughTheOneThatHidesIt) {
  Sketch s;
  s.send(rows(s.a, 2, 2));                   // step 0
  s.copy(s.b, s.a);                          // step 1: covers what is being sent
  s.receive(rows(s.a, 0, 4), 1);             // step 2
  s.send(rows(s.b, 0, 4), 1);                // step 3: nothing but reads
  s.copy(rows(s.c, 0, 4), rows(s.a, 0, 4));  // step 4
  const Program program = s.builder.build();
  EXPECT_EQ(after(program, 1), (Steps{0}));
  EXPECT_EQ(after(program, 2), (Steps{1}));
  EXPECT_EQ(after(program, 3), Steps{});
  EXPECT_EQ(after(program, 4), (Steps{2}));
}

TEST(ProgramBuilder, StepsWithEqualBandsShareThem) {
  ProgramBuilder builder(0);
  const View q = builder.scratch("q", DType::f32, 8, 2, 4), k = builder.scratch("k", DType::f32, 8, 2, 4),
             lse = builder.scratch("lse", DType::f32, 8, 2, 1);
  const std::vector<Band> causal{{0, 8, 0, 8, -kUnbounded, 0}}, full{{0, 8, 0, 8}};
  for (const std::vector<Band>& bands : {causal, causal, full, causal}) {
    builder.attend({}, {q, k, k, q, lse}, bands, 1, 0, Mode::write);
    builder.copy({}, k, q);
  }
  const Program program = builder.build();
  EXPECT_EQ(program.bands.size(), 3u);
  for (const std::size_t step : {0, 2, 6}) EXPECT_EQ(program.bands_of(program.steps[step])[0], causal[0]);
  EXPECT_EQ(program.bands_of(program.steps[4])[0], full[0]);
  EXPECT_EQ(program.steps[1].bands.count, 0u);
}

TEST(ProgramBuilder, EmptyExchangesAreDroppedButCounted) {
  ProgramBuilder builder(0);
  const View a = builder.scratch("a", DType::f32, 8, 1, 4);
  const std::vector<Message> to_self{{0, a}}, empty{{1, rows(a, 0, 0)}}, real{{1, a}};
  builder.exchange({"self"}, 0, to_self, to_self);
  builder.exchange({"empty"}, 0, empty, {});
  builder.exchange({"real"}, 1, real, to_self);
  builder.exchange({"none"}, 0, {}, {});
  builder.exchange({"again"}, 0, {}, real);
  const Program program = builder.build();
  ASSERT_EQ(program.steps.size(), 2u);
  EXPECT_EQ(program.steps[0].phase, 2);
  EXPECT_EQ(program.steps[0].lane, 1);
  EXPECT_EQ(program.sends_of(program.steps[0]).size(), 1u);
  EXPECT_EQ(program.receives_of(program.steps[0]).size(), 0u);
  EXPECT_EQ(program.steps[1].phase, 4);
}

TEST(ProgramBuilder, StepsOfZeroRowsAreDropped) {
  Sketch s;
  const View a = rows(s.a, 0, 0), b = rows(s.b, 0, 0);
  const std::vector<Band> band{{0, 1, 0, 1}};
  s.copy(a, b);
  s.builder.add({"add"}, a, b);
  s.builder.attend({"attend"}, {a, s.b, s.b, b, b}, {}, 1, 0, Mode::write);
  s.builder.attend({"attend"}, {s.a, s.b, s.b, s.c, s.c}, {}, 1, 0, Mode::add);
  s.builder.attend_backward({"backward"}, {a, b, b, a, a, a, a, b, b}, {}, 1, 0, Mode::write);
  s.builder.merge({"merge"}, a, a, b, b);
  s.builder.finish({"finish"}, a, a, {}, b, b);
  s.builder.delta({"delta"}, {a, a, a, {}, {}, b, {}});
  EXPECT_EQ(s.builder.build().steps.size(), 0u);

  Sketch kept;
  kept.builder.attend({"starts the state"}, {kept.a, kept.b, kept.b, kept.c, kept.c}, {}, 1, 0, Mode::write);
  kept.builder.attend_backward({"writes dk"}, {a, kept.b, kept.b, a, a, a, a, kept.c, kept.c}, {}, 1, 0, Mode::write);
  EXPECT_EQ(kept.builder.build().steps.size(), 2u);
}

TEST(ProgramBuilder, SendablePacksOnlyWhatIsNotDense) {
  ProgramBuilder builder(0);
  const View dense = builder.slot("dense", Role::input, DType::f32, 8, 2, 4);
  const View strided = builder.slot("strided", Role::input, DType::bf16, 8, 2, 4, false);
  EXPECT_EQ(builder.sendable(dense, "unused"), dense);
  EXPECT_EQ(builder.sendable(rows(dense, 2, 3), "unused"), rows(dense, 2, 3));
  const View packed = builder.sendable(rows(strided, 1, 5), "packed"), head = builder.sendable({dense.slot, 0, 8, 1, 1}, "head");
  const Program program = builder.build();
  ASSERT_EQ(program.steps.size(), 2u);
  for (const auto& [view, step, source] : {std::tuple(packed, 0u, rows(strided, 1, 5)), {head, 1u, View{dense.slot, 0, 8, 1, 1}}}) {
    const Slot& slot = program.slot_of(view);
    EXPECT_EQ(slot.role, Role::scratch);
    EXPECT_TRUE(slot.contiguous);
    EXPECT_EQ(slot.dtype, program.slot_of(source).dtype);
    EXPECT_EQ(view, (View{view.slot, 0, source.rows, 0, source.heads}));
    EXPECT_EQ(program.steps[step].op, Op::copy);
    EXPECT_EQ(program.accesses_of(program.steps[step])[0].view, source);
    EXPECT_EQ(program.accesses_of(program.steps[step])[1].view, view);
  }
}

TEST(ProgramBuilder, RotatingScratchTakesItsSlotsInTurn) {
  ProgramBuilder builder(0);
  RotatingScratch spare = builder.rotating_scratch("kv", 3, DType::f32, 10, 2, 4);
  std::vector<SlotId> order;
  for (int i = 0; i < 7; ++i) {
    const View view = spare.next(i);
    EXPECT_EQ(view.rows, i);
    order.push_back(view.slot);
  }
  EXPECT_EQ(order, (std::vector<SlotId>{0, 1, 2, 0, 1, 2, 0}));
  EXPECT_THROW(spare.next(11), InternalError);
  const Program program = builder.build();
  EXPECT_EQ(program.slots[1].name, "kv.1");
  EXPECT_EQ(program.workspace_bytes, 0) << "slots that no step touches take no memory";
}

TEST(PlaceBlocks, AlignsAndKeepsApartWhatMayLiveTogether) {
  std::mt19937_64 random(5);
  for (int trial = 0; trial < 300; ++trial) {
    const int count = 1 + static_cast<int>(random() % 12);
    std::vector<std::int64_t> bytes, offsets(static_cast<std::size_t>(count));
    for (int i = 0; i < count; ++i) bytes.push_back(static_cast<std::int64_t>(random() % 3000));
    const std::uint64_t salt = random();
    const auto apart = [&](int a, int b) { return (salt >> ((a * 7 + b * 7) % 61) & 1) != 0; };
    const std::int64_t total = place_blocks(bytes, apart, offsets);
    std::int64_t end = 0;
    for (int a = 0; a < count; ++a) {
      const auto i = static_cast<std::size_t>(a);
      ASSERT_EQ(offsets[i] % kArenaAlignment, 0);
      end = std::max(end, offsets[i] + bytes[i]);
      for (int b = 0; b < a; ++b) {
        const auto j = static_cast<std::size_t>(b);
        ASSERT_TRUE(apart(a, b) || offsets[i] >= offsets[j] + bytes[j] || offsets[j] >= offsets[i] + bytes[i]) << a << " meets " << b;
      }
    }
    ASSERT_GE(total, end);
    ASSERT_LT(total, end + kArenaAlignment);
  }
}

TEST(PlaceBlocks, ReusesBytesOfBlocksThatNeverLiveTogether) {
  std::vector<std::int64_t> offsets(3);
  const std::vector<std::int64_t> bytes{300, 1000, 300};
  EXPECT_EQ(place_blocks(
                bytes, [](int, int) { return true; }, offsets),
            1024);
  EXPECT_EQ(place_blocks(
                bytes, [](int, int) { return false; }, offsets),
            2048);
  EXPECT_EQ(place_blocks(
                bytes, [](int a, int b) { return a + b == 2; }, offsets),
            1536);
}

TEST(ProgramBuilder, SlotsShareBytesOnlyWhenTheirLivesAreOrdered) {
  // a is dead once b is made from it; c is then written by the same queue.
  Sketch ordered;
  const View out = ordered.builder.slot("out", Role::output, DType::f32, 8, 2, 4);
  ordered.copy(out, ordered.a);
  ordered.copy(ordered.a, ordered.b);
  ordered.copy(ordered.b, ordered.c);
  const Program reused = ordered.builder.build();
  EXPECT_EQ(reused.slots[0].offset, reused.slots[2].offset);
  EXPECT_NE(reused.slots[0].offset, reused.slots[1].offset);
  EXPECT_EQ(reused.workspace_bytes, 2 * 256);

  // The same with a send of a that may still be under way.
  Sketch sending;
  const View to = sending.builder.slot("out", Role::output, DType::f32, 8, 2, 4);
  sending.copy(to, sending.a);
  sending.send(sending.a);
  sending.copy(sending.a, sending.b);
  sending.copy(sending.b, sending.c);
  EXPECT_EQ(sending.builder.build().workspace_bytes, 3 * 256);
}

/// Two ranks with the same random steps, each the other's peer.
Plan random_plan(std::uint64_t seed) {
  const Lengths cu{0, 2};
  Plan plan{{}, {SequenceLayout::make(LayoutKind::contiguous, 2, cu), Mask({}, cu)}};
  for (const Rank rank : {0, 1}) {
    std::mt19937_64 random(seed);
    const auto below = [&](int n) { return static_cast<int>(random() % static_cast<std::uint64_t>(n)); };
    ProgramBuilder builder(rank);
    std::vector<View> slots;
    for (int i = 0; i < 8; ++i) slots.push_back(builder.scratch(std::to_string(i), DType::f32, 8, 2, 16));
    for (int i = 0; i < 24; ++i) {
      // Slots come into use one after the other, so that early ones die before late ones are born.
      const int from = std::min(7, i / 4 + below(3)), to = std::min(7, i / 4 + below(3));
      const std::int64_t count = 1 + below(4);
      const View source = rows(slots[static_cast<std::size_t>(from)], below(5), count),
                 destination = rows(slots[static_cast<std::size_t>(to)], below(5), count);
      if (from == to) continue;
      if (below(2) == 0) {
        builder.copy({"copy"}, source, destination);
      } else {
        const std::vector<Message> sends{{1 - rank, source}}, receives{{1 - rank, destination}};
        builder.exchange({"swap"}, below(2), sends, receives);
      }
    }
    plan.programs.push_back(builder.build());
  }
  return plan;
}

TEST(ProgramBuilder, RandomProgramsHaveNoRaceAndReuseMemory) {
  int reused = 0;
  for (std::uint64_t seed = 0; seed < 400; ++seed) {
    const Plan plan = random_plan(seed);
    for (const std::string& failure : verify(plan).failures) {
      // What the steps compute makes no sense; every check before that must pass.
      ASSERT_NE(failure.find("never written"), std::string::npos) << "seed " << seed << ": " << failure;
    }
    reused += plan.programs[0].workspace_bytes < 8 * 1024;
  }
  EXPECT_GT(reused, 100);
}

std::string line(const Program& program, const Step& step) {
  std::string text = std::string(info(step.op).name) + " '" + step.label.text + " " + std::to_string(step.label.index) + "'";
  for (const Access& access : program.accesses_of(step)) {
    if (access.view.present()) text += std::string(" ") + letter(access.mode) + ":" + program.slot_of(access.view).name;
  }
  for (const Message& m : program.sends_of(step)) text += " " + program.slot_of(m.view).name + "->" + std::to_string(m.peer);
  for (const Message& m : program.receives_of(step)) text += " " + program.slot_of(m.view).name + "<-" + std::to_string(m.peer);
  if (step.op == Op::exchange) text += " lane " + std::to_string(step.lane) + " phase " + std::to_string(step.phase);
  for (const StepId id : program.after_of(step)) text += " after " + std::to_string(id);
  return text;
}

TEST(RingProgram, ForwardOfFourRanksIsThisSequence) {
  const AttentionProblem problem = test::ring_problem(LayoutKind::zigzag, 4, {0, 64});
  const Program program = make_program(problem, {}, Pass::forward, 1);
  const std::vector<std::string> expected{
      "exchange 'kv to hop 1' k->2 v->2 k.0<-0 v.0<-0 lane 0 phase 0",
      "attend 'hop 0' r:q r:k r:v w:state.out w:state.lse",
      "exchange 'kv to hop 2' k.0->2 v.0->2 k.1<-0 v.1<-0 lane 0 phase 1",
      "attend 'hop 1' r:q r:k.0 r:v.0 a:state.out a:state.lse after 0",
      "exchange 'kv to hop 3' k.1->2 v.1->2 k.0<-0 v.0<-0 lane 0 phase 2 after 3",
      "attend 'hop 2' r:q r:k.1 r:v.1 a:state.out a:state.lse after 2",
      "attend 'hop 3' r:q r:k.0 r:v.0 a:state.out a:state.lse after 4",
      "finish 'finish -1' r:state.out r:state.lse w:out w:lse",
  };
  std::vector<std::string> lines;
  for (const Step& step : program.steps) lines.push_back(line(program, step));
  EXPECT_EQ(lines, expected);
}

TEST(RingProgram, BuildsFastForManyRanksAndDocuments) {
  std::mt19937_64 random(8);
  Lengths lengths;
  for (int d = 0; d < 100; ++d) lengths.push_back(1 + static_cast<std::int64_t>(random() % 2000));
  for (const LayoutKind kind : test::kLayoutKinds) {
    const AttentionProblem problem = test::ring_problem(kind, 64, test::borders(lengths));
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      double best = 1e9;
      for (const int rank : {0, 31, 63}) {
        const auto begin = std::chrono::steady_clock::now();
        const Program program = make_program(problem, {}, pass, rank);
        best = std::min(best, std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count());
        ASSERT_GT(program.steps.size(), 64u);
      }
      std::cout << "building " << to_string(kind) << (pass == Pass::forward ? " forward" : " backward")
                << ", 64 ranks, 100 documents: " << best << " ms\n";
      EXPECT_LT(best, 20);
    }
  }
}

}  // namespace
}  // namespace periplus::plan
