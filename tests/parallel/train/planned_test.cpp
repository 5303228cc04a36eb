// Training with groups that the planner makes.
#include <algorithm>
#include <cmath>
#include <set>

#include <gtest/gtest.h>

#include "parallel/attention.h"
#include "parallel/balanced_layout.h"
#include "parallel/train/data/corpus.h"
#include "parallel/train/step_plan.h"
#include "runtime/error.h"
#include "runtime/file.h"
#include "tests/parallel/train/planned_runs.h"
#include "tests/parallel/train/scenario.h"

namespace periplus::train {
namespace {

namespace fs = std::filesystem;

class PlannedTraining : public testing::Test {
 protected:
  PlannedTraining() { write_corpus(folder_ / "corpus"); }

  Config config(const std::string& planner, const std::string& dtype) {
    Config config = tiny_config(folder_.path());
    config.data.rows_per_step = 4;
    config.parallel.planner = planner;
    config.run.dtype = dtype;
    config.run.directory = (folder_ / std::to_string(++runs_)).string();
    return config;
  }
  /// Memory for 40 tokens a rank: documents of 64 need two ranks, steps several micro-batches.
  static Outcome run(const Config& config, int ranks, bool resume = false, std::int64_t stop_after = 0, double tokens = 40) {
    if (config.parallel.planner == "none") return run_training(config, ranks, resume, stop_after);
    Config plain = config;
    plain.model.pattern = "S";
    return run_training(config, ranks, resume, stop_after, {}, machine_for(plain, storage_dtype(config.run), ranks, tokens));
  }
  static std::string error_of(const Config& config, int ranks, double tokens = 40) {
    try {
      run(config, ranks, false, 0, tokens);
    } catch (const InvalidArgument& error) {
      return error.what();
    }
    return "no error";
  }
  TemporaryFolder folder_;
  int runs_ = 0;
};

TEST_F(PlannedTraining, LossesAreThoseOfOneRankOnEachRow) {
  for (const std::string dtype : {"f64", "f32"}) {
    const double tolerance = dtype == "f64" ? 1e-10 : 1e-5;
    const Outcome single = run(config("none", dtype), 1);
    ASSERT_EQ(single.steps.size(), 8u);
    EXPECT_EQ(single.steps.front().micro_batches, 4);
    for (const int ranks : {2, 3, 4}) {
      for (const std::string planner : {"none", "static", "adaptive", "flexible"}) {
        SCOPED_TRACE(testing::Message() << dtype << " " << planner << " on " << ranks);
        const Outcome outcome = run(config(planner, dtype), ranks);
        ASSERT_EQ(outcome.steps.size(), single.steps.size());
        for (std::size_t i = 0; i < single.steps.size(); ++i) {
          EXPECT_NEAR(outcome.steps[i].loss, single.steps[i].loss, tolerance * single.steps[i].loss) << "step " << i + 1;
          EXPECT_NEAR(outcome.steps[i].grad_norm, single.steps[i].grad_norm, 10 * tolerance * single.steps[i].grad_norm);
          EXPECT_EQ(outcome.steps[i].tokens, single.steps[i].tokens);
          EXPECT_NEAR(outcome.steps[i].flops_per_second * outcome.steps[i].step_seconds,
                      single.steps[i].flops_per_second * single.steps[i].step_seconds, 1);
          EXPECT_EQ(outcome.steps[i].predicted_seconds > 0, planner != "none");
        }
      }
    }
  }
}

TEST_F(PlannedTraining, LossesDoNotDependOnWhatIsSharedOut) {
  const std::vector<double> single = run(config("none", "f64"), 1).losses();
  for (const std::string planner : {"static", "flexible"}) {
    for (const std::int64_t stage : {2, 3}) {
      for (const int ranks : {2, 3, 4}) {
        SCOPED_TRACE(testing::Message() << planner << ", stage " << stage << ", " << ranks << " ranks");
        Config planned = config(planner, "f64");
        planned.parallel.zero_stage = stage;
        const Outcome outcome = run(planned, ranks, false, 0, ranks < 3 ? 40 : 24);
        ASSERT_EQ(outcome.steps.size(), single.size());
        for (std::size_t i = 0; i < single.size(); ++i) EXPECT_NEAR(outcome.steps[i].loss, single[i], 1e-10) << "step " << i + 1;
      }
    }
  }
}

TEST_F(PlannedTraining, ThePlannerKnowsWhatEveryStageSpares) {
  constexpr int kRanks = 2;
  const auto bytes_of = [&](std::int64_t stage) {
    Config planned = config("static", "bf16");
    planned.model.layers = 3, planned.parallel.zero_stage = stage, planned.run.steps = 1;
    const MachineDescription machine = machine_for(planned, DType::bf16, kRanks, 40);
    const double expected =
        bytes_of_every_rank(planned, DType::bf16, {}) + planner_model(planned, DType::bf16, machine.simulated).state_bytes / kRanks;
    return std::pair(expected, static_cast<double>(run(planned, kRanks).result.state_bytes));
  };
  const auto [expected, held] = bytes_of(1);
  for (const std::int64_t stage : {2, 3}) {
    const auto [expected_then, held_then] = bytes_of(stage);
    EXPECT_NEAR(expected - expected_then, held - held_then, 1024) << stage;
  }
}

TEST_F(PlannedTraining, LossesDoNotDependOnTheLayout) {
  const std::vector<double> single = run(config("none", "f64"), 1).losses();
  for (const char* layout : {"contiguous", "zigzag", "striped", "balanced"}) {
    Config planned = config("flexible", "f64");
    planned.parallel.layout = layout;
    const std::vector<double> losses = run(planned, 4, false, 0, 24).losses();
    ASSERT_EQ(losses.size(), single.size());
    for (std::size_t i = 0; i < single.size(); ++i) EXPECT_NEAR(losses[i], single[i], 1e-10) << layout << " step " << i + 1;
  }
}

/// The plans of a run's steps, and the sizes of their groups.
TEST_F(PlannedTraining, GroupsOfManySizesChangeFromOneMicroBatchToTheNext) {
  constexpr int kRanks = 4;
  const Config flexible = config("flexible", "f32");
  const MachineDescription machine = machine_for(flexible, DType::f32, kRanks, 24);
  const Corpus corpus(flexible.data.paths);
  const Packing packing("best_fit", corpus.lengths(), flexible.data.context);
  comm::run_thread_ranks(kRanks, [&](const comm::Communicator& communicator) {
    StepPlanner planner(flexible, packing, DType::f32, &machine, {}, communicator);
    std::set<int> sizes;
    bool changes = false, side_by_side = false;
    for (std::int64_t step = 1; step <= flexible.run.steps; ++step) {
      const StepPlan plan = planner.plan(step);
      EXPECT_GT(plan.micro_batches.size(), 1u);
      EXPECT_GE(plan.gap, 0);
      std::int64_t tokens = 0;
      std::vector<int> before;
      for (const std::vector<StepGroup>& micro_batch : plan.micro_batches) {
        std::vector<int> now;
        for (const StepGroup& group : micro_batch) {
          now.push_back(group.ranks);
          sizes.insert(group.ranks);
          for (const Piece& piece : group.pieces) tokens += piece.length;
        }
        changes = changes || (!before.empty() && now != before);
        side_by_side = side_by_side || now.size() > 1;
        before = now;
      }
      EXPECT_EQ(tokens, plan.tokens);
    }
    EXPECT_TRUE(changes);
    EXPECT_TRUE(side_by_side);
    EXPECT_TRUE(sizes.contains(1) && sizes.contains(3)) << testing::PrintToString(sizes);
  });
}

TEST_F(PlannedTraining, AnyStepMayBeAskedForFirst) {
  const Config flexible = config("flexible", "f32");
  const MachineDescription machine = machine_for(flexible, DType::f32, 2, 40);
  const Corpus corpus(flexible.data.paths);
  const Packing packing("best_fit", corpus.lengths(), flexible.data.context);
  comm::run_thread_ranks(2, [&](const comm::Communicator& communicator) {
    StepPlanner in_order(flexible, packing, DType::f32, &machine, {}, communicator),
        other(flexible, packing, DType::f32, &machine, {}, communicator);
    std::vector<double> seconds;
    for (std::int64_t step = 1; step <= 5; ++step) seconds.push_back(in_order.plan(step).predicted_seconds);
    for (const std::int64_t step : {4, 2, 5}) EXPECT_EQ(other.plan(step).predicted_seconds, seconds[static_cast<std::size_t>(step - 1)]);
  });
}

TEST_F(PlannedTraining, ARunThatGoesOnIsTheRunThatNeverStopped) {
  for (const char* planner : {"static", "flexible"}) {
    const Outcome whole = run(config(planner, "f32"), 3);
    const Config halves = config(planner, "f32");
    Outcome joined = run(halves, 3, false, 4);
    ASSERT_LT(joined.steps.size(), 8u);
    const Outcome rest = run(halves, 3, true);
    joined.steps.insert(joined.steps.end(), rest.steps.begin(), rest.steps.end());
    EXPECT_EQ(joined.losses(), whole.losses()) << planner;
  }
}

TEST_F(PlannedTraining, KeepsToTheMemoryItPlansFor) {
  Config large = config("flexible", "f32");
  // Long enough that a token's memory outweighs the tile of rows that every rank has (layer.h).
  fs::remove_all(folder_ / "corpus");
  for (int i = 0; i < 12; ++i) write_text(folder_ / "corpus" / std::to_string(i), seeded_text(500 + 700 * static_cast<std::size_t>(i), 3));
  large.data.context = 8192;
  large.run.steps = 2;
  for (const double tokens : {3000.0, 6000.0}) {
    large.run.directory = (folder_ / std::to_string(++runs_)).string();
    const MachineDescription machine = machine_for(large, DType::f32, 3, tokens);
    const Outcome outcome = run(large, 3, false, 0, tokens);
    EXPECT_GT(outcome.steps.front().micro_batches, 1);
    EXPECT_LT(static_cast<double>(outcome.steps.back().peak_memory_bytes), machine.planner.memory_bytes) << tokens;
  }
}

TEST_F(PlannedTraining, WritesTheMachineAndSaysWhatItPlansFor) {
  const Config fixed = config("static", "f32");
  const Outcome outcome = run(fixed, 2);
  EXPECT_EQ(read_file(fs::path(fixed.run.directory) / "machine.toml", 1 << 10), "# of a test\n");
  EXPECT_TRUE(std::ranges::any_of(outcome.messages, [](const std::string& message) {
    return message.find("planner: static groups on machine test, each 2 x ") != std::string::npos;
  }));
}

TEST_F(PlannedTraining, RefusesWhatItCannotPlan) {
  EXPECT_NE(error_of(config("flexible", "f32"), 2, 20).find("lower data.context to that, or train on 3 ranks"), std::string::npos)
      << error_of(config("flexible", "f32"), 2, 20);
  Config strategy = config("flexible", "f32");
  strategy.parallel.attention.strategy = "ulysses";
  EXPECT_NE(error_of(strategy, 2).find("parallel.strategy is ulysses; it must be left out"), std::string::npos) << error_of(strategy, 2);
  Config window = config("static", "f32");
  window.model.pattern = "SW", window.model.window = 8;
  EXPECT_NE(error_of(window, 2).find("model.pattern is SW; it must be of S layers only"), std::string::npos) << error_of(window, 2);
  Config unknown = config("best", "f32");
  EXPECT_NE(error_of(unknown, 2).find("parallel.planner is 'best'"), std::string::npos) << error_of(unknown, 2);
  Config machine = config("none", "f32");
  machine.parallel.machine = "a100x8";
  EXPECT_NE(error_of(machine, 2).find("parallel.machine is a100x8; it must be left out"), std::string::npos) << error_of(machine, 2);
  EXPECT_THROW(run_training(config("flexible", "f32"), 2), InvalidArgument);  // no machine
  const Config two = config("flexible", "f32");
  const MachineDescription small = machine_for(two, DType::f32, 2, 40);
  EXPECT_THROW(run_training(config("none", "f32"), 2, false, 0, {}, small), InvalidArgument);  // a machine for nobody
  EXPECT_THROW(run_training(two, 3, false, 0, {}, small), InvalidArgument);
}

TEST_F(PlannedTraining, OtherRowsPerStepAreAnotherRun) {
  Config first = config("none", "f32");
  run(first, 1);
  first.data.rows_per_step = 5, first.run.steps = 9;
  EXPECT_THROW(run(first, 1, true), InvalidArgument);
}

/// Nothing that the planner may choose is refused when its group is to run.
TEST(OptionsOf, EveryKindCanBePlannedInEveryLayout) {
  const std::vector<std::int64_t> borders = {0, 3, 40, 41, 150};
  const Mask mask({}, borders);
  for (const auto& [heads, kv_heads] : {std::pair{4, 2}, {6, 3}, {8, 1}, {5, 5}, {12, 4}}) {
    Config config;
    config.model.heads = heads, config.model.kv_heads = kv_heads;
    const planner::CostModel cost = planner_costs(config, DType::f32, machine_for(config, DType::f32, 8, 1000), 8);
    std::set<planner::Method> methods;
    for (const planner::Kind& kind : cost.kinds()) {
      methods.insert(kind.method);
      for (const char* layout : {"contiguous", "zigzag", "striped", "document_zigzag", "balanced"}) {
        AttentionProblem problem{.layout = make_layout(layout_kind_from_string(layout), kind.degree, mask), .mask = mask};
        problem.q_heads = heads, problem.kv_heads = kv_heads, problem.head_size = 4;
        for (const Pass pass : {Pass::forward, Pass::backward})
          EXPECT_NO_THROW(make_plan(problem, options_of(kind), pass)) << heads << " " << kv_heads << " " << layout << " " << kind.degree;
      }
    }
    EXPECT_EQ(methods.size(), heads == 5 ? 4u : 5u) << heads;  // usp needs heads that two sizes divide
  }
}

/// Else both ends of a message would not meet in the trace.
TEST(GroupTraces, NameTheRanksOfAll) {
  const std::vector<std::int64_t> borders = {0, 16};
  comm::run_thread_ranks(4, [&](const comm::Communicator& communicator) {
    const int rank = communicator.rank(), first = rank / 2 * 2;
    const AttentionProblem problem{.layout = SequenceLayout::make(LayoutKind::zigzag, 2, borders), .mask = Mask({}, borders)};
    Tracer tracer(rank);
    DistributedAttention attention(problem, {.strategy = "ring"}, communicator.group(first, 2), Memory(), &tracer);
    const Extents shape = {8, 1, 64};
    const Tensor q = Tensor::zeros(shape, DType::f32, Memory()), out = Tensor::zeros(shape, DType::f32, Memory()),
                 lse = Tensor::zeros({8, 1, 1}, DType::f32, Memory());
    attention.forward({q, q, q}, {out, lse});
    int messages = 0;
    for (const TraceEvent& event : tracer.events()) {
      for (const TraceMessage& message : event.messages) {
        EXPECT_EQ(message.peer, first == rank ? first + 1 : first);
        ++messages;
      }
    }
    EXPECT_EQ(messages, 4);  // keys and values, out and in
  });
}

TEST(PlanBytes, RoundTripAndRefuseOthers) {
  const planner::BatchPlan plan{
      .micro_batches = {{.groups = {{.first_rank = 2, .kind = 3, .sequences = {0, 5}, .seconds = 0.1}}, .seconds = 1.0 / 3}},
      .seconds = 1.0 / 3,
      .found_by = "a test",
      .bound = {.area = 0.01, .longest = 0.02, .linear = 0.03}};
  const planner::BatchPlan back = plan_from_bytes(to_bytes(plan));
  EXPECT_EQ(to_bytes(back), to_bytes(plan));
  EXPECT_EQ(back.micro_batches.at(0).groups.at(0).sequences, (std::vector<int>{0, 5}));
  EXPECT_EQ(back.micro_batches.at(0).seconds, 1.0 / 3);
  EXPECT_EQ(back.found_by, "a test");
  EXPECT_THROW(plan_from_bytes("no plan"), InvalidArgument);
  EXPECT_THROW(plan_from_bytes(to_bytes(plan).substr(0, 20)), InvalidArgument);
}

TEST(PlannerCosts, AreWhatTheSimulatorPredicts) {
  Config config;
  config.model = {.layers = 3, .hidden = 64, .heads = 6, .kv_heads = 2, .head_size = 16, .ffn = 96, .vocabulary = 256};
  config.data.context = 16384;
  const MachineDescription machine = machine_for(config, DType::f32, 6, 8192);
  const planner::CostModel cost = planner_costs(config, DType::f32, machine, 6);
  EXPECT_EQ(std::vector<int>(cost.degrees().begin(), cost.degrees().end()), (std::vector<int>{1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(cost.kinds()[0].capacity, 8192);
  // Matrices: 6 flops a weight and token, and 4 of making activations again, all but the last matrix's; 14 of a masked pair.
  const double h = 64, q = 96, kv = 32, f = 96, rate = 1e9;
  const double layer = h * (q + 2 * kv) + q * h + 3 * h * f;
  const double token = (3 * (6 * layer + 2 * layer - 2 * h * f) + 6 * h * 256) / rate;
  EXPECT_NEAR(cost.kinds()[0].token / token, 1, 0.05);
  EXPECT_NEAR(cost.kinds()[0].pair / (3 * 7 * q / rate), 1, 0.05);
}

TEST(PlannerCosts, DoNotMindLettersThatNoLayerGets) {
  Config config;
  config.data.context = 1024;
  const MachineDescription machine = machine_for(config, DType::f32, 2, 1024);
  config.model.layers = 1, config.model.pattern = "SD";
  EXPECT_GT(planner_model(config, DType::f32, machine.simulated).seconds_per_token, 0);
}

TEST(PlannerCosts, DegreesBetweenThoseOfTheFileHaveTheRateOfTheNext) {
  planner::Machine machine{.name = "m", .devices = 24, .devices_per_node = 8, .all_to_all = {{4, 5e9}, {8, 4e9}, {16, 1e9}}};
  machine.link_bytes_per_second = 9e9, machine.node_bytes_per_second = 8e9;
  const planner::Machine all = with_all_degrees(machine);
  std::vector<std::pair<int, int>> rows;  // with MB/s
  for (const auto& row : all.all_to_all) rows.emplace_back(row.degree, static_cast<int>(std::lround(row.bytes_per_second / 1e6)));
  EXPECT_EQ(rows, (std::vector<std::pair<int, int>>{
                      {2, 5000}, {3, 5000}, {4, 5000}, {5, 4000}, {6, 4000}, {7, 4000}, {8, 4000}, {16, 1000}, {24, 1500}}));
}

}  // namespace
}  // namespace periplus::train
