#include "parallel/planner/planner.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include <gtest/gtest.h>

#include "parallel/planner/prove.h"
#include "runtime/error.h"
#include "tests/parallel/planner/cases.h"

namespace periplus::planner {
namespace {

using Lengths = std::vector<std::int64_t>;

std::string message_of(Planner& planner, const Lengths& lengths) {
  try {
    planner.plan(lengths);
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "no error";
}

/// A second look that shares no code with the checker: counts of sequences, tokens of ranks.
void expect_sound(const BatchPlan& plan, const CostModel& cost, const Lengths& lengths) {
  std::vector<int> times(lengths.size(), 0);
  double sum = 0;
  for (const PlannedMicroBatch& micro_batch : plan.micro_batches) {
    std::set<int> ranks;
    std::size_t members = 0;
    double longest = 0;
    for (const PlannedGroup& group : micro_batch.groups) {
      const Kind& kind = cost.kinds()[static_cast<std::size_t>(group.kind)];
      double seconds = kind.start;
      std::int64_t tokens = 0;
      for (const int k : group.sequences) {
        ++times.at(static_cast<std::size_t>(k));
        tokens += lengths[static_cast<std::size_t>(k)];
        seconds += kind.seconds(lengths[static_cast<std::size_t>(k)]);
      }
      EXPECT_LE(tokens, kind.capacity);
      longest = std::max(longest, seconds);
      for (int r = 0; r < kind.degree; ++r) ranks.insert(group.first_rank + r);
      members += static_cast<std::size_t>(kind.degree);
    }
    EXPECT_EQ(ranks.size(), members);
    EXPECT_TRUE(ranks.empty() || (*ranks.begin() >= 0 && *ranks.rbegin() < cost.devices()));
    sum += longest + cost.micro_batch_seconds();
  }
  EXPECT_TRUE(std::ranges::all_of(times, [](int count) { return count == 1; }));
  EXPECT_NEAR(sum, plan.seconds, 1e-9 * std::max(1.0, sum));
  EXPECT_LE(plan.bound.seconds(), plan.seconds * (1 + 1e-9));
}

std::string bytes_of(const BatchPlan& plan) {
  std::string text;
  const auto add = [&](const auto& value) { text.append(reinterpret_cast<const char*>(&value), sizeof value); };
  for (const PlannedMicroBatch& micro_batch : plan.micro_batches) {
    add(micro_batch.seconds);
    for (const PlannedGroup& group : micro_batch.groups) {
      add(group.first_rank), add(group.kind), add(group.seconds);
      for (const int k : group.sequences) add(k);
    }
  }
  add(plan.seconds), add(plan.bound.area), add(plan.bound.longest), add(plan.bound.linear);
  return text;
}

struct Setting {
  int devices;
  std::vector<int> degrees;
};
const std::vector<Setting> kSettings = {{1, {}},        {2, {2}},          {4, {2, 4}},           {6, {2, 4}},
                                        {8, {2, 4, 8}}, {8, {2, 3, 4, 8}}, {12, {2, 3, 4, 8, 12}}};

CostModel make_cost(const Setting& setting, bool ulysses_only = false) {
  Model model = small_model();
  model.state_bytes = 1e8 * setting.devices;  // as much a device for every number of devices
  return {model, small_machine(setting.devices, setting.degrees), {.devices = setting.devices, .ulysses_only = ulysses_only}};
}

TEST(Planner, BoundIsAtMostTheOptimumAndThePlanAtLeast) {
  std::mt19937_64 random(5);
  int proven = 0, optimal = 0;
  double worst = 1;
  for (int i = 0; i < 420; ++i) {
    const Setting& setting = kSettings[1 + static_cast<std::size_t>(i) % (kSettings.size() - 2)];
    Planner planner(make_cost(setting, i % 3 != 0));
    const int count = 2 + static_cast<int>(random() % 5);
    const Lengths lengths = random_lengths(random, count, planner.cost().longest());
    const BatchPlan plan = planner.plan(lengths);
    const Batch batch(planner.cost(), lengths);
    const Proof proof = prove(batch, std::numeric_limits<double>::infinity(), 300'000);
    if (!proof.complete) continue;
    ++proven;
    EXPECT_LE(plan.bound.seconds(), proof.seconds * (1 + 1e-9)) << "case " << i;
    EXPECT_LE(proof.seconds, plan.seconds * (1 + 1e-9)) << "case " << i;
    optimal += plan.seconds <= proof.seconds * (1 + 1e-9);
    worst = std::max(worst, plan.seconds / proof.seconds);
  }
  EXPECT_GE(proven, 300);
  EXPECT_GE(optimal, proven * 3 / 4);
  EXPECT_LE(worst, 1.5);
  RecordProperty("proven", proven);
  std::printf("%d proven, %d of them optimal, worst plan %.3f of the optimum\n", proven, optimal, worst);
}

TEST(Planner, KeepsItsPromisesOnRandomBatches) {
  std::mt19937_64 random(7);
  int infeasible = 0;
  for (int i = 0; i < 5000; ++i) {
    const Setting& setting = kSettings[static_cast<std::size_t>(i) % kSettings.size()];
    PlannerOptions options;
    options.search.beam = 2, options.search.limits = 4;
    options.with_linear_bound = i % 10 == 0;
    Planner planner(make_cost(setting, i % 4 == 0), options);
    const int count = static_cast<int>(random() % 24);
    Lengths lengths = random_lengths(random, count, planner.cost().longest());
    if (i % 25 == 0) lengths.assign(lengths.size(), planner.cost().longest() / 3);
    if (i % 25 == 1) lengths.push_back(planner.cost().longest());
    if (i % 25 == 2) lengths.assign(1, planner.cost().longest() / 2);
    if (i % 25 == 3) lengths.assign(5, 0);
    if (i % 25 == 4) {
      lengths.insert(lengths.begin(), planner.cost().longest() + 1 + static_cast<std::int64_t>(random() % 1000));
      const std::string message = message_of(planner, lengths);
      EXPECT_TRUE(message.starts_with("planner: sequence 0 of ")) << message;
      EXPECT_NE(message.find(" devices would do"), std::string::npos) << message;
      ++infeasible;
      continue;
    }
    const BatchPlan plan = planner.plan(lengths);
    EXPECT_EQ(refutation(plan, planner.cost(), lengths), "");
    expect_sound(plan, planner.cost(), lengths);
    const bool searched = plan.found_by.starts_with("search") || plan.found_by == "fall-back: the search found nothing";
    EXPECT_TRUE(searched || lengths.empty()) << plan.found_by;
    if (HasFailure()) FAIL() << "case " << i;
  }
  EXPECT_EQ(infeasible, 200);
}

TEST(Planner, NamesTheLeastNumberOfDevicesThatWouldDo) {
  Model model = small_model();
  const Machine machine = small_machine(8);
  for (const int devices : {5, 6, 8}) {
    const CostModel few(model, machine, {.devices = devices});
    const std::int64_t length = few.longest() + 1;
    const auto needed = static_cast<int>(few.devices_for(length));
    ASSERT_GT(needed, devices);
    const auto longest_on = [&](int count) { return CostModel(model, small_machine(count), {.devices = count}).longest(); };
    EXPECT_GE(longest_on(needed), length);
    EXPECT_LT(longest_on(needed - 1), length) << needed;
  }
}

TEST(Planner, SameLengthsSameBytesAndAnyOrderSameCost) {
  std::mt19937_64 random(11);
  for (int i = 0; i < 40; ++i) {
    const Setting& setting = kSettings[static_cast<std::size_t>(i) % kSettings.size()];
    Lengths lengths = random_lengths(random, 40, make_cost(setting).longest());
    const BatchPlan once = Planner(make_cost(setting)).plan(lengths), again = Planner(make_cost(setting)).plan(lengths);
    EXPECT_EQ(bytes_of(once), bytes_of(again));
    std::ranges::shuffle(lengths, random);
    const BatchPlan shuffled = Planner(make_cost(setting)).plan(lengths);
    EXPECT_NEAR(once.seconds, shuffled.seconds, 1e-12 * once.seconds);
    EXPECT_EQ(once.bound.seconds(), shuffled.bound.seconds());
  }
}

TEST(Planner, FailingSolversLeaveTheSimpleBounds) {
  std::mt19937_64 random(13);
  const Setting setting = kSettings[4];
  const Lengths lengths = random_lengths(random, 30, make_cost(setting).longest());
  const BatchPlan usual = Planner(make_cost(setting)).plan(lengths);
  const auto with = [&](SolveLinear solve) {
    PlannerOptions options;
    options.solve_linear = std::move(solve);
    return Planner(make_cost(setting), options).plan(lengths);
  };
  DualSimplex simplex;
  const std::vector<SolveLinear> broken = {
      [](const LinearProgram&) -> LinearSolution { throw std::runtime_error("no solver"); },
      [](const LinearProgram&) { return LinearSolution{}; },
      [](const LinearProgram& program) {
        return LinearSolution{true, std::vector<double>(program.row_lower.size(), std::numeric_limits<double>::quiet_NaN())};
      }};
  for (const SolveLinear& solve : broken) {
    const BatchPlan plan = with(solve);
    EXPECT_EQ(plan.seconds, usual.seconds);
    EXPECT_EQ(plan.bound.linear, 0);
    EXPECT_GT(plan.bound.seconds(), 0);
  }
  // Duals that are wrong give a bound that is worse, never one that is too high.
  for (const double wrong : {-1e6, -1.0, 0.5, 3.0, 1e6}) {
    const BatchPlan plan = with([&](const LinearProgram& program) {
      LinearSolution solution = simplex.solve(program);
      for (std::size_t row = 0; row < solution.duals.size(); ++row) solution.duals[row] *= row % 3 == 0 ? wrong : 1;
      return solution;
    });
    EXPECT_LE(plan.bound.linear, usual.seconds);
    EXPECT_EQ(refutation(plan, make_cost(setting), lengths), "");
  }
}

TEST(Planner, TheDeadlineGivesANamedFallBack) {
  std::mt19937_64 random(17);
  const Setting setting = kSettings[4];
  const Lengths lengths = random_lengths(random, 60, make_cost(setting).longest());
  PlannerOptions options;
  options.deadline_seconds = 0;
  const BatchPlan none = Planner(make_cost(setting), options).plan(lengths);
  EXPECT_EQ(none.found_by, "fall-back: the deadline");
  expect_sound(none, make_cost(setting), lengths);
  int ticks = 0;
  options.deadline_seconds = 60;
  options.clock = [&] { return static_cast<double>(ticks++); };
  const BatchPlan some = Planner(make_cost(setting), options).plan(lengths);
  EXPECT_TRUE(some.found_by == "search until the deadline" || some.found_by == "fall-back: the deadline") << some.found_by;
  expect_sound(some, make_cost(setting), lengths);
}

TEST(Planner, MoreStrategiesNeverCostAnything) {
  std::mt19937_64 random(19);
  for (int i = 0; i < 60; ++i) {
    const Setting& setting = kSettings[4 + static_cast<std::size_t>(i) % 3];
    const Lengths lengths = random_lengths(random, 40, make_cost(setting, true).longest());
    EXPECT_LE(Planner(make_cost(setting, false)).plan(lengths).seconds,
              Planner(make_cost(setting, true)).plan(lengths).seconds * (1 + 1e-12));
  }
}

TEST(Planner, TheCheckerFindsWhatIsWrong) {
  const Setting setting = kSettings[4];
  const CostModel cost = make_cost(setting);
  const Lengths lengths = {900, 500, 400, 300, 200, 100, 50, 0};
  const BatchPlan good = Planner(cost).plan(lengths);
  ASSERT_EQ(refutation(good, cost, lengths), "");
  const auto refuted = [&](const auto& change) {
    BatchPlan bad = good;
    change(bad);
    return refutation(bad, cost, lengths);
  };
  EXPECT_NE(refuted([](BatchPlan& plan) { plan.micro_batches[0].groups[0].sequences[0] = 99; }).find("no sequence 99"), std::string::npos);
  EXPECT_NE(refuted([](BatchPlan& plan) { plan.micro_batches[0].groups.pop_back(); }), "");
  EXPECT_NE(refuted([](BatchPlan& plan) { plan.micro_batches.push_back(plan.micro_batches[0]); }).find("twice"), std::string::npos);
  EXPECT_NE(refuted([](BatchPlan& plan) { plan.micro_batches[0].groups[0].first_rank = 8; }).find("do not exist"), std::string::npos);
  EXPECT_NE(refuted([](BatchPlan& plan) { plan.micro_batches[0].groups[0].seconds *= 0.9; }).find("it takes"), std::string::npos);
  EXPECT_NE(refuted([](BatchPlan& plan) { plan.seconds *= 0.99; }).find("it takes"), std::string::npos);
  EXPECT_NE(refuted([](BatchPlan& plan) { plan.bound.linear = 2 * plan.seconds; }).find("lower bound"), std::string::npos);
  EXPECT_NE(refuted([](BatchPlan& plan) { plan.micro_batches[0].seconds = std::numeric_limits<double>::quiet_NaN(); }), "");
  const Lengths longer(lengths.size(), cost.longest());
  EXPECT_NE(refutation(good, cost, longer).find("memory holds"), std::string::npos);
}

TEST(Planner, RefusesWhatIsNoLength) {
  Planner planner(make_cost(kSettings[4]));
  EXPECT_EQ(message_of(planner, {5, -1}), "planner: sequence 1 has length -1; lengths must be >= 0");
  EXPECT_EQ(planner.plan(Lengths{}).micro_batches.size(), 0U);
  Model large = small_model();
  large.state_bytes = 1e12;
  EXPECT_THROW(CostModel(large, small_machine(8)), InvalidArgument);
  EXPECT_THROW(CostModel(small_model(), small_machine(8), {.devices = 9}), InvalidArgument);
}

TEST(Places, AreAsManyAsPlaceFinds) {
  for (int per_node = 1; per_node <= 5; ++per_node) {
    for (int devices = 1; devices <= 3 * per_node; ++devices) {
      for (int degree = 1; degree <= devices; ++degree) {
        if (degree > per_node && degree % per_node != 0) continue;
        const int count = places(degree, devices, per_node);
        const std::vector<int> all(static_cast<std::size_t>(count), degree);
        const std::vector<int> more(static_cast<std::size_t>(count) + 1, degree);
        EXPECT_EQ(place(all, devices, per_node).size(), all.size()) << degree << " of " << devices << " in nodes of " << per_node;
        EXPECT_TRUE(place(more, devices, per_node).empty()) << degree << " of " << devices << " in nodes of " << per_node;
      }
    }
  }
}

/// Also where groups of three leave a device of every node idle.
TEST(PlanOfKind, IsSoundAndOfOneKind) {
  std::mt19937_64 random(11);
  for (const auto& degrees : {std::vector<int>{2, 4, 8}, std::vector<int>{2, 3, 4, 8}}) {
    Planner planner{CostModel(small_model(), small_machine(8, degrees))};
    for (int round = 0; round < 10; ++round) {
      const Lengths lengths = random_lengths(random, 30, 900);
      const double free = planner.plan(lengths).seconds;
      double best = std::numeric_limits<double>::infinity();
      for (int kind = 0; kind < static_cast<int>(planner.cost().kinds().size()); ++kind) {
        const BatchPlan plan = planner.plan_of_kind(lengths, kind);
        expect_sound(plan, planner.cost(), lengths);
        for (const PlannedMicroBatch& micro_batch : plan.micro_batches) {
          for (const PlannedGroup& group : micro_batch.groups) EXPECT_EQ(group.kind, kind);
        }
        best = std::min(best, plan.seconds);
      }
      EXPECT_EQ(planner.plan_of_kind(lengths, -1).seconds, best);
      EXPECT_LE(free, best) << "groups of one kind are groups";
    }
    EXPECT_EQ(planner.plan_of_kind(Lengths{}, -1).seconds, 0);
    EXPECT_THROW(planner.plan_of_kind(Lengths{5000}, 0), InvalidArgument);
  }
}

}  // namespace
}  // namespace periplus::planner
