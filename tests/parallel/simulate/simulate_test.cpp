#include "parallel/simulate/simulate.h"

#include <map>
#include <random>

#include <gtest/gtest.h>

#include "parallel/plan/builder.h"
#include "runtime/error.h"
#include "tests/parallel/plan/plan_cases.h"

namespace periplus::simulate {
namespace {

using plan::Op;
using plan::Plan;
using plan::Program;
using plan::Step;

const MaskSpec kFull{false, -1, -1, 0};

Plan ring(int ranks, Pass pass = Pass::forward) {
  return make_plan(test::ring_problem(LayoutKind::contiguous, ranks, {0, 16 * ranks}, kFull), {}, pass);
}

/// A message takes as long whatever its size.
comm::Links links_of(double seconds) { return {.inside = {.latency_seconds = seconds}}; }

/// Attend steps and messages of one length; everything else takes no time.
Costs even_costs(double attend, double message) {
  return {[=](const Program&, const Step& step) { return step.op == Op::attend ? attend : 0; }, links_of(message)};
}

TEST(Simulate, TwoRanksTwoHopsByHand) {
  const std::map<std::pair<int, int>, double> attend{{{0, 0}, 2}, {{0, 1}, 3}, {{1, 0}, 4}, {{1, 1}, 1}};
  const Costs costs{[&](const Program& program, const Step& step) {
                      return step.op == Op::attend ? attend.at({program.rank, step.label.index}) : 0.5;
                    },
                    links_of(5)};
  const Timeline t = simulate(ring(2), costs);
  // Both exchanges are 0..5. Rank 0: hop 0 0..2, hop 1 5..8, finish 8.5. Rank 1: hop 0 0..4, hop 1 5..6, finish 6.5.
  EXPECT_DOUBLE_EQ(t.makespan, 8.5);
  ASSERT_EQ(t.ranks.size(), 2u);
  const auto expect_rank = [](const RankTime& rank, double finish, double compute, double exposed) {
    EXPECT_DOUBLE_EQ(rank.finish, finish);
    EXPECT_DOUBLE_EQ(rank.compute, compute);
    EXPECT_DOUBLE_EQ(rank.exposed, exposed);
  };
  expect_rank(t.ranks[0], 8.5, 5.5, 3);
  expect_rank(t.ranks[1], 6.5, 5.5, 1);
  const TraceEvent& hop = t.traces[0].events().at(2);
  EXPECT_EQ(hop.name, "attend: hop 1");
  EXPECT_EQ(hop.track, "compute");
  EXPECT_DOUBLE_EQ(hop.begin_us, 5e6);
  EXPECT_DOUBLE_EQ(hop.duration_us, 3e6);
}

TEST(Simulate, RanksBeginWhenTheyAreTold) {
  // The last to begin holds up the message that both wait for: 3, and 5 more; then 2 of compute and the finish, which is free.
  Costs costs = even_costs(2, 5);
  costs.starts = {1, 3};
  const Timeline t = simulate(ring(2), costs);
  EXPECT_DOUBLE_EQ(t.makespan, 10);
  EXPECT_DOUBLE_EQ(t.ranks[0].exposed, 5);  // hop 0 is 1 to 3, hop 1 begins at 8
  EXPECT_DOUBLE_EQ(t.ranks[1].exposed, 3);
  Costs same = even_costs(2, 5);
  same.starts = {7, 7};
  EXPECT_DOUBLE_EQ(simulate(ring(2), same).makespan, 7 + simulate(ring(2), even_costs(2, 5)).makespan);
  costs.starts = {1};
  EXPECT_THROW(simulate(ring(2), costs), InvalidArgument);
}

TEST(Simulate, ComputeIsSlowerWhileMessagesMove) {
  // 16 rows of k and v are 32 units of size; the first hop computes 3 s, 2 of which beside messages at half the pace: 1 + 2.
  const Plan plan = ring(2);
  double bytes = 0;
  for (const Step& step : plan.programs[0].steps) {
    for (const plan::Message& m : plan.programs[0].sends_of(step)) bytes += static_cast<double>(plan.programs[0].bytes_of(m.view));
  }
  Costs costs{[](const Program&, const Step& step) { return step.op == Op::attend ? 3.0 : 0; },
              {{.bytes_per_second = bytes / 2, .sharing = comm::Sharing::port}}};
  EXPECT_DOUBLE_EQ(simulate(plan, costs).makespan, 6);
  costs.overlap_slowdown = 2;
  const Timeline t = simulate(plan, costs);
  EXPECT_DOUBLE_EQ(t.makespan, 7);
  EXPECT_DOUBLE_EQ(t.ranks[0].compute, 7);
  EXPECT_DOUBLE_EQ(t.ranks[0].exposed, 0);
}

TEST(Simulate, AMessageMovesOnceBothExchangesHaveStarted) {
  // Rank 0 copies for 2 s and sends; rank 1 receives, and on its other lane sends what rank 0 awaits from the start.
  const test::Lengths cu{0, 2};
  Plan plan{{}, {SequenceLayout::make(LayoutKind::contiguous, 2, cu), Mask({}, cu)}};
  for (const int rank : {0, 1}) {
    plan::ProgramBuilder builder(rank);
    const plan::View a = builder.scratch("a", DType::f32, 4, 1, 1), b = builder.scratch("b", DType::f32, 4, 1, 1),
                     c = builder.scratch("c", DType::f32, 4, 1, 1);
    const std::vector<plan::Message> to{{1 - rank, b}}, from{{1 - rank, c}}, none;
    if (rank == 0) builder.copy({"copy"}, a, b);
    builder.exchange({"there"}, 0, rank == 0 ? to : none, rank == 0 ? none : from);
    builder.exchange({"back"}, 1, rank == 1 ? to : none, rank == 1 ? none : from);
    plan.programs.push_back(builder.build());
  }
  const Timeline t = simulate(plan, {[](const Program&, const Step&) { return 2.0; }, {.inside = {.bytes_per_second = 4}}});
  const auto& sender = t.traces[0].events();
  const auto& receiver = t.traces[1].events();
  EXPECT_DOUBLE_EQ(sender[1].begin_us, 2e6);
  EXPECT_DOUBLE_EQ(sender[1].duration_us, 4e6);
  EXPECT_DOUBLE_EQ(receiver[0].begin_us, 0);
  EXPECT_DOUBLE_EQ(receiver[0].duration_us, 6e6) << "it waits for the sender, then 4 s for 16 bytes";
  EXPECT_DOUBLE_EQ(sender[2].begin_us, 0) << "the lanes do not wait for each other";
  EXPECT_DOUBLE_EQ(sender[2].duration_us, 4e6);
  EXPECT_EQ(sender[2].track, "lane 1");
  EXPECT_DOUBLE_EQ(t.ranks[0].exposed, 4);
  EXPECT_DOUBLE_EQ(t.ranks[1].exposed, 6);
}

TEST(Simulate, RingIsBoundByComputeOrByMessages) {
  for (const int ranks : {2, 3, 8}) {
    const double hops = ranks;
    EXPECT_DOUBLE_EQ(simulate(ring(ranks), even_costs(4, 3)).makespan, hops * 4);
    EXPECT_DOUBLE_EQ(simulate(ring(ranks), even_costs(4, 3)).ranks[1].exposed, 0);
    const Timeline slow = simulate(ring(ranks), even_costs(2, 5));
    EXPECT_DOUBLE_EQ(slow.makespan, (hops - 1) * 5 + 2);
    EXPECT_DOUBLE_EQ(slow.ranks[1].exposed, (hops - 1) * 5 + 2 - hops * 2);
  }
}

TEST(Simulate, OneSlowRankHoldsItsNeighbourUp) {
  // With two spare buffers rank 0 can run ahead of rank 1 by at most what has already been sent to it.
  const Costs costs{[](const Program& program, const Step& step) { return step.op == Op::attend ? (program.rank == 1 ? 10.0 : 1.0) : 0.0; },
                    links_of(1)};
  const Timeline t = simulate(ring(4), costs);
  EXPECT_DOUBLE_EQ(t.ranks[1].finish, 40);
  EXPECT_DOUBLE_EQ(t.makespan, 40);
  // Rank 1 takes its third block into the buffer that hop 1 reads until 20; rank 2 gets it at 21 at the soonest.
  EXPECT_GE(t.ranks[2].finish, 20);
  EXPECT_DOUBLE_EQ(t.ranks[2].compute, 4);
}

TEST(Simulate, OneRankTakesTheSumOfItsSteps) {
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    const Plan plan = ring(1, pass);
    const Timeline t = simulate(plan, {[](const Program&, const Step& step) { return 1.0 + static_cast<double>(step.op); }});
    double sum = 0;
    for (const Step& step : plan.programs[0].steps) sum += 1.0 + static_cast<double>(step.op);
    EXPECT_GE(plan.programs[0].steps.size(), 2u);
    EXPECT_DOUBLE_EQ(t.makespan, sum);
    EXPECT_DOUBLE_EQ(t.ranks[0].exposed, 0);
  }
}

TEST(Simulate, TimesAddUpForRandomCosts) {
  std::mt19937_64 random(4);
  std::uniform_real_distribution<double> seconds(0, 1);
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    for (const int ranks : {2, 3, 5, 8}) {
      const Plan plan = make_plan(test::ring_problem(LayoutKind::zigzag, ranks, {0, 30, 97}), {}, pass);
      const Timeline t = simulate(plan, {[&](const Program&, const Step&) { return seconds(random); }, links_of(seconds(random))});
      double latest = 0;
      for (std::size_t r = 0; r < t.ranks.size(); ++r) {
        const RankTime& rank = t.ranks[r];
        latest = std::max(latest, rank.finish);
        EXPECT_NEAR(rank.compute + rank.exposed, rank.finish, 1e-9);
      }
      EXPECT_DOUBLE_EQ(latest, t.makespan);
    }
  }
}

TEST(Simulate, TraceHasOneEventPerStepInOrderOfItsQueue) {
  const Plan plan = make_plan(test::ring_problem(LayoutKind::striped, 4, {0, 61}), {}, Pass::backward);
  const Timeline t = simulate(plan, {[](const Program&, const Step&) { return 1.0; }, links_of(0.5)});
  ASSERT_EQ(t.traces.size(), 4u);
  for (std::size_t r = 0; r < 4; ++r) {
    EXPECT_EQ(t.traces[r].rank(), static_cast<int>(r));
    ASSERT_EQ(t.traces[r].events().size(), plan.programs[r].steps.size());
    std::map<std::string, double> end;
    for (std::size_t i = 0; i < t.traces[r].events().size(); ++i) {
      const TraceEvent& event = t.traces[r].events()[i];
      EXPECT_EQ(event.step, static_cast<int>(i));
      EXPECT_GE(event.begin_us, end[event.track]);
      end[event.track] = event.begin_us + event.duration_us;
      for (const plan::StepId other : plan.programs[r].after_of(plan.programs[r].steps[i])) {
        const TraceEvent& waited = t.traces[r].events()[static_cast<std::size_t>(other)];
        EXPECT_GE(event.begin_us, waited.begin_us + waited.duration_us);
      }
    }
    EXPECT_EQ(end.size(), 3u) << "compute and both lanes";
  }
}

TEST(Simulate, RefusesAMessageNobodyReceives) {
  Plan plan = ring(2);
  plan.programs[1].steps[0].phase = 7;
  try {
    simulate(plan, even_costs(1, 1));
    FAIL() << "accepted";
  } catch (const InvalidArgument& error) {
    EXPECT_NE(std::string(error.what()).find("rank 0 receives from rank 1 in phase 0"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace periplus::simulate
