#include "parallel/plan/alike.h"

#include <random>
#include <set>

#include <gtest/gtest.h>

#include "parallel/plan/builder.h"
#include "parallel/plan/print.h"
#include "tests/parallel/plan/plan_cases.h"

namespace periplus::plan {
namespace {

/// What a race check asks for: which accesses of a program share cells, one of them a write, of whole exchanges and of other steps.
std::set<std::array<std::size_t, 2>> conflicts(const Program& program) {
  struct Use {
    std::size_t step;
    View view;
    bool writes;
  };
  std::vector<Use> uses;
  for (std::size_t id = 0; id < program.steps.size(); ++id) {
    const Step& step = program.steps[id];
    for (const Access& access : program.accesses_of(step)) uses.push_back({id, access.view, access.mode != Mode::read});
    for (const Message& m : program.sends_of(step)) uses.push_back({id, m.view, false});
    for (const Message& m : program.receives_of(step)) uses.push_back({id, m.view, true});
  }
  std::set<std::array<std::size_t, 2>> found;
  for (const Use& a : uses) {
    for (const Use& b : uses) {
      if ((a.writes || b.writes) && overlap(a.view, b.view) && !a.view.empty() && !b.view.empty()) found.insert({a.step, b.step});
    }
  }
  return found;
}

/// Steps on three slots; row i of a slot is row `rows[i]`.
Program program_of(const std::vector<std::int64_t>& rows, std::uint64_t seed, std::uint64_t slip) {
  ProgramBuilder builder(0);
  const std::int64_t count = rows.back(), last = static_cast<std::int64_t>(rows.size()) - 1;
  std::vector<View> slots;
  for (const char* name : {"a", "b", "c"}) slots.push_back(builder.scratch(name, DType::f32, count + 8, 2, 1));
  std::mt19937_64 random(seed), slips(slip);
  const auto pick = [&](std::int64_t below) { return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(below)); };
  const bool from_start = pick(3) == 0;
  const auto view = [&](std::size_t slot) {
    const std::int64_t begin = from_start ? 0 : pick(last), end = begin + pick(last - begin) + 1;
    View result = slots[slot];
    result.row0 = rows[static_cast<std::size_t>(begin)];
    result.rows = rows[static_cast<std::size_t>(end)] - result.row0;
    if (slip != 0 && slips() % 6 == 0) result.rows += static_cast<std::int64_t>(slips() % 3);
    return result;
  };
  for (int step = 0; step < 12; ++step) {
    if (pick(2) == 0) {
      std::vector<Message> sends, receives;
      for (std::int64_t i = pick(3); i >= 0; --i) sends.emplace_back(1, view(0));
      for (std::int64_t i = pick(3); i >= 0; --i) receives.emplace_back(2, view(1 + static_cast<std::size_t>(pick(2))));
      builder.exchange({"exchange"}, static_cast<int>(pick(2)), sends, receives);
    } else {
      const std::int64_t from = pick(3), head = pick(2);
      const View source = view(static_cast<std::size_t>(from));
      builder.copy({"copy"}, source.heads_at(head, 1), view(static_cast<std::size_t>((from + 1) % 3)).heads_at(head, 1));
    }
  }
  return builder.build();
}

TEST(Likeness, IsOfProgramsThatShareCellsAtTheSameSteps) {
  std::mt19937_64 random(3);
  const auto rising = [&](bool alike) {
    std::vector<std::int64_t> rows{0};
    for (int i = 0; i < 5; ++i) rows.push_back(rows.back() + 1 + static_cast<std::int64_t>(alike ? 1 : random() % 4));
    return rows;
  };
  Likeness alike;
  int found = 0, unlike = 0;
  for (std::uint64_t seed = 1; seed <= 4000; ++seed) {
    const Program a = program_of(rising(true), seed, 0), b = program_of(rising(false), seed, seed % 2 == 0 ? 0 : seed);
    const bool same = conflicts(a) == conflicts(b);
    const bool like = alike(a, b, false);
    ASSERT_TRUE(same || !like) << "seed " << seed;
    if (seed % 2 == 0) {
      EXPECT_TRUE(like) << "seed " << seed;
    }
    EXPECT_EQ(like, alike(b, a, false));
    if (like) {
      EXPECT_EQ(a.after, b.after) << "seed " << seed;
    }
    found += static_cast<int>(like), unlike += static_cast<int>(!same);
  }
  EXPECT_GT(found, 2000);
  EXPECT_GT(unlike, 200);
}

TEST(Likeness, KnowsModesQueuesWaitsAndSlots) {
  Likeness alike;
  const Program original = program_of({0, 2, 4, 6, 8, 10}, 7, 0);
  ASSERT_TRUE(alike(original, original, true));
  const auto unlike = [&](auto&& damage) {
    Program other = original;
    damage(other);
    return !alike(original, other, true) && !alike(other, original, true);
  };
  const auto exchange = [](Program& p) -> Step& { return *std::ranges::find(p.steps, Op::exchange, &Step::op); };
  EXPECT_TRUE(unlike([](Program& p) { p.accesses.front().mode = Mode::write; }));
  EXPECT_TRUE(unlike([](Program& p) { p.accesses.front().view.slot = (p.accesses.front().view.slot + 1) % 3; }));
  EXPECT_TRUE(unlike([](Program& p) { p.accesses.front().view.head0 ^= 1; }));
  EXPECT_TRUE(unlike([](Program& p) { p.accesses.pop_back(), p.steps.pop_back(); }));
  EXPECT_TRUE(unlike([&](Program& p) { exchange(p).lane ^= 1; }));
  EXPECT_TRUE(unlike([&](Program& p) { exchange(p).sends.count -= 1; }));
  EXPECT_TRUE(unlike([](Program& p) { p.after.front() += 1; }));
  EXPECT_TRUE(unlike([](Program& p) { std::ranges::find_if(p.steps, [](const Step& s) { return s.after.count > 0; })->after.count = 0; }));
  EXPECT_TRUE(unlike([](Program& p) { p.slots.front().role = Role::input; }));
}

/// Programs of a plan take the waits of others that are alike; a rank that makes its own finds the same.
TEST(ProgramBuilder, WaitsAreThoseOfAProgramMadeAlone) {
  for (const LayoutKind layout : test::kLayoutKinds) {
    for (const MaskSpec& mask : {MaskSpec{}, MaskSpec{.causal = true}, MaskSpec{.causal = true, .window_left = 9}}) {
      const AttentionProblem problem = test::ring_problem(layout, 8, {0, 53}, mask);
      for (const strategy::Strategy& strategy : strategy::strategies()) {
        const AttentionOptions options{.strategy = std::string(strategy.name)};
        if (!strategy::refusal(strategy, problem, options).empty()) continue;
        for (const Pass pass : {Pass::forward, Pass::backward}) {
          const Plan plan = make_plan(problem, options, pass);
          for (const Program& program : plan.programs) {
            ASSERT_EQ(to_json(make_program(problem, options, pass, program.rank)), to_json(program))
                << strategy.name << " " << to_string(layout);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace periplus::plan
