#include "parallel/execute/rehearse.h"

#include <algorithm>
#include <map>
#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "parallel/plan/ops.h"
#include "parallel/simulate/simulate.h"
#include "parallel/strategy/strategy.h"
#include "tests/parallel/plan/plan_cases.h"

// The executor against the plan and the simulator: one execution model, two clocks.
namespace periplus::execute {
namespace {

struct Case {
  std::string name;
  plan::Plan plan;
};

/// A problem that the strategy can plan: causal, on the layout it accepts, with a window if it needs one.
AttentionProblem problem_for(const strategy::Strategy& strategy, int ranks, const test::Lengths& cu, int heads = 4, int kv_heads = 2) {
  const MaskSpec window{true, cu.back() / 4, 0, 0};
  for (const auto& [layout, mask] :
       {std::pair{LayoutKind::zigzag, MaskSpec{}}, {LayoutKind::contiguous, MaskSpec{}}, {LayoutKind::contiguous, window}}) {
    const AttentionProblem problem = test::ring_problem(layout, ranks, cu, mask, heads, kv_heads);
    if (strategy::refusal(strategy, problem, {.strategy = std::string(strategy.name)}).empty()) return problem;
  }
  ADD_FAILURE() << strategy.name << " refuses everything on " << ranks << " ranks";
  return test::ring_problem(LayoutKind::zigzag, ranks, cu);
}

std::vector<Case> cases(int ranks, const test::Lengths& cu) {
  std::vector<Case> all;
  for (const strategy::Strategy& strategy : strategy::strategies()) {
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      const std::string name(strategy.name);
      all.push_back({name + (pass == Pass::forward ? " forward" : " backward") + " on " + std::to_string(ranks),
                     make_plan(problem_for(strategy, ranks, cu), {.strategy = name}, pass)});
    }
  }
  return all;
}

const Pace kInstantly = [](const plan::Program&, const plan::Step&) { return 0.0; };

TEST(Rehearsal, TransportCountsTheBytesOfThePlanAndTheFormula) {
  for (const int ranks : {1, 2, 3, 4, 8}) {
    for (const auto& [name, plan] : cases(ranks, {0, 33, 128})) {
      const Rehearsal rehearsal = rehearse(plan, {}, kInstantly);
      for (std::size_t r = 0; r < plan.programs.size(); ++r) {
        EXPECT_EQ(rehearsal.bytes_sent[r], plan.programs[r].bytes_sent()) << name << ", rank " << r;
        EXPECT_EQ(rehearsal.ranks[r].bytes_sent, plan.programs[r].bytes_sent()) << name << ", rank " << r;
      }
      const std::int64_t sum = rehearsal.total_bytes_sent();
      const std::int64_t formula = plan.claim.bytes_sent >= 0 ? plan.claim.bytes_sent : sum;
      EXPECT_EQ(sum, formula) << name;
      EXPECT_TRUE(ranks == 1 || sum > 0) << name;
    }
  }
}

/// Arrows of a trace, after a check that each has both ends, and that it leads forward.
std::size_t arrows_of(const std::vector<Tracer>& traces) {
  std::vector<const Tracer*> pointers;
  for (const Tracer& trace : traces) pointers.push_back(&trace);
  std::map<int, double> starts, ends;
  const nlohmann::json json = nlohmann::json::parse(to_chrome_trace(pointers));
  for (const auto& event : json.at("traceEvents")) {
    if (event.at("ph") == "s") starts.emplace(event.at("id"), event.at("ts"));
    if (event.at("ph") == "f") ends.emplace(event.at("id"), event.at("ts"));
  }
  EXPECT_EQ(starts.size(), ends.size());
  for (const auto& [id, ts] : starts) EXPECT_LE(ts, ends.at(id) + 0.0031) << "two instants, rounded";
  return starts.size();
}

TEST(Rehearsal, TracesOfExecutorAndSimulatorHaveAnArrowForEachMessage) {
  for (const auto& [name, plan] : cases(4, {0, 33, 128})) {
    std::size_t messages = 0;
    for (const plan::Program& program : plan.programs) messages += program.sends.size();
    const Rehearsal rehearsal = rehearse(plan, {}, kInstantly);
    EXPECT_EQ(arrows_of(rehearsal.traces), messages) << name;
    const simulate::Timeline timeline = simulate::simulate(plan, {rehearsal.measured(plan), comm::Links{}});
    EXPECT_EQ(arrows_of(timeline.traces), messages) << name;
    for (std::size_t r = 0; r < plan.programs.size(); ++r) {
      std::vector<TraceEvent> events = rehearsal.traces[r].events();
      ASSERT_EQ(events.size(), plan.programs[r].steps.size()) << name;
      std::ranges::sort(events, {}, &TraceEvent::step);
      for (std::size_t id = 0; id < events.size(); ++id) {
        const TraceEvent& simulated = timeline.traces[r].events()[id];
        EXPECT_EQ(events[id].step, static_cast<int>(id)) << name;
        EXPECT_EQ(events[id].name, simulated.name) << name;
        EXPECT_EQ(events[id].track, simulated.track) << name;
      }
    }
  }
}

TEST(Rehearsal, TakesAsLongAsTheSimulatorSays) {
  for (const auto& [name, plan] : cases(4, {0, 4096})) {
    // Work and messages of 0.1 s each, so that neither hides all of the other.
    double flops = 0;
    std::int64_t bytes = 0;
    for (const plan::Program& program : plan.programs) {
      double sum = 0;
      for (const plan::Step& step : program.steps) sum += plan::flops(program, step);
      flops = std::max(flops, sum);
      bytes = std::max(bytes, program.bytes_sent());
    }
    const comm::Links links{{.bytes_per_second = static_cast<double>(bytes) / 0.1, .sharing = comm::Sharing::port}};
    const Rehearsal rehearsal = rehearse(
        plan, links, [&](const plan::Program& program, const plan::Step& step) { return plan::flops(program, step) / flops * 0.1; });
    const double simulated = simulate::simulate(plan, {rehearsal.measured(plan), links}).makespan;
    EXPECT_GE(simulated, 0.1) << name;
    EXPECT_GE(rehearsal.seconds, 0.98 * simulated) << name;
    EXPECT_LE(rehearsal.seconds, 1.25 * simulated + 0.05) << name << ": a busy machine may add to it, but not this much";
  }
}

TEST(Rehearsal, RealKernelsRunToo) {
  const plan::Plan plan = make_plan(test::ring_problem(LayoutKind::zigzag, 2, {0, 512}), {}, Pass::backward);
  const Rehearsal rehearsal = rehearse(plan, {}, {});
  for (std::size_t r = 0; r < 2; ++r) {
    for (std::size_t id = 0; id < plan.programs[r].steps.size(); ++id) {
      EXPECT_EQ(rehearsal.step_seconds[r][id] > 0, plan.programs[r].steps[id].op != plan::Op::exchange);
    }
  }
}

}  // namespace
}  // namespace periplus::execute
