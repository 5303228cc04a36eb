#include "parallel/plan/print.h"

#include <algorithm>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "parallel/plan/ops.h"
#include "tests/parallel/plan/plan_cases.h"

namespace periplus::plan {
namespace {

using Json = nlohmann::json;

AttentionProblem problem(int ranks = 3) { return test::ring_problem(LayoutKind::zigzag, ranks, {0, 20, 42}); }

TEST(PrintPlan, TextNamesOperandsMessagesAndDependencies) {
  const Program program = make_program(problem(), {}, Pass::forward, 1);
  const std::string text = to_text(program);
  const std::int64_t bytes = problem().layout.rows_of(1) * 2 * 8 * 4;
  for (const std::string& part :
       {std::string("rank 1: "), std::string("slot  q "), std::string("input "), std::string("kv to hop 1 "),
        "send k[0:14] -> 2 (" + std::to_string(bytes) + " B)", std::string("recv k.0[0:14] <- 0"), std::string("q:r=q[0:14]"),
        std::string("k:r=k.0[0:14]"), std::string("out:w=state.out[0:14]"), std::string("lse:a=state.lse[0:14]"), std::string("phase 1"),
        std::string(" after 0"), std::string("state_out:r=state.out")}) {
    EXPECT_NE(text.find(part), std::string::npos) << "no '" << part << "' in\n" << text;
  }
  EXPECT_EQ(static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n')), 1 + program.slots.size() + program.steps.size());
}

TEST(PrintPlan, TextNamesHeadsOnlyOfPartialViews) {
  Program program;
  program.slots = {{"all", Role::input, DType::f32, 4, 3, 2}, {"part", Role::scratch, DType::bf16, 4, 1, 2, 512}};
  program.accesses = {{{0, 1, 2, 1, 1}, Mode::read}, {{1, 0, 2, 0, 1}, Mode::write}};
  Step step;
  step.op = Op::copy;
  step.accesses = {0, 2};
  step.label = {"pack"};
  program.steps = {step};
  const std::string text = to_text(program);
  EXPECT_NE(text.find("source:r=all[1:3, heads 1:2] destination:w=part[0:2]\n"), std::string::npos) << text;
  EXPECT_NE(text.find("bf16 [4, 1, 2] at 512"), std::string::npos) << text;
}

TEST(PrintPlan, JsonHoldsEveryStepFieldByField) {
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    const Program program = make_program(problem(), {}, pass, 2);
    const Json json = Json::parse(to_json(program));
    EXPECT_EQ(json["rank"], 2);
    EXPECT_EQ(json["workspace_bytes"], program.workspace_bytes);
    ASSERT_EQ(json["slots"].size(), program.slots.size());
    ASSERT_EQ(json["steps"].size(), program.steps.size());
    for (std::size_t i = 0; i < program.steps.size(); ++i) {
      const Step& step = program.steps[i];
      const Json& entry = json["steps"][i];
      EXPECT_EQ(entry["id"], i);
      EXPECT_EQ(entry["op"], info(step.op).name);
      EXPECT_EQ(entry["after"].size(), step.after.count);
      if (step.op == Op::exchange) {
        EXPECT_EQ(entry["phase"], step.phase);
        EXPECT_EQ(entry["sends"].size(), step.sends.count);
        EXPECT_EQ(entry["receives"].size(), step.receives.count);
      } else {
        EXPECT_EQ(entry["operands"].size(), step.accesses.count);
        EXPECT_EQ(entry.value("bands", Json::array()).size(), step.bands.count);
      }
    }
  }
}

TEST(PrintPlan, MovesShowTheirStrides) {
  const AttentionProblem striped = test::ring_problem(LayoutKind::striped, 3, test::borders(test::Lengths(8, 7)));
  const Json json = Json::parse(to_json(make_program(striped, {.strategy = "ulysses"}, Pass::forward, 0)));
  Json moves = Json::array();
  for (const Json& step : json["steps"]) {
    if (step.contains("moves")) moves.push_back(step["moves"]);
  }
  ASSERT_EQ(moves.size(), 5u);  // q, k, v into the sequence; out, lse out of it
  EXPECT_EQ(moves[0][1], (Json{{"from", 19}, {"to", 1}, {"rows", 19}, {"to_stride", 3}}));
  EXPECT_EQ(moves[3][1], (Json{{"from", 1}, {"to", 19}, {"rows", 19}, {"from_stride", 3}}));
}

TEST(PrintPlan, BytesAddUp) {
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    const Plan plan = make_plan(problem(4), {}, pass);
    std::int64_t all = 0;
    for (const Program& of_rank : plan.programs) {
      const Json program = Json::parse(to_json(of_rank));
      std::int64_t sent = 0;
      for (const Json& step : program["steps"]) {
        for (const Json& message : step.value("sends", Json::array())) sent += message["bytes"].get<std::int64_t>();
      }
      EXPECT_EQ(program["bytes_sent"], sent);
      all += sent;
    }
    EXPECT_GT(all, 0);
    EXPECT_EQ(plan.claim.bytes_sent, all);
  }
}

TEST(PrintPlan, DifferentProgramsPrintDifferently) {
  const auto texts = [](const AttentionProblem& p, Pass pass, int rank) {
    const Program program = make_program(p, {}, pass, rank);
    return std::pair(to_text(program), to_json(program));
  };
  const auto base = texts(problem(), Pass::forward, 0);
  AttentionProblem scaled = problem();
  scaled.scale = 0.25;
  EXPECT_EQ(base, texts(problem(), Pass::forward, 0));
  for (const auto& other : {texts(problem(), Pass::forward, 1), texts(problem(), Pass::backward, 0), texts(problem(4), Pass::forward, 0)}) {
    EXPECT_NE(base.first, other.first);
    EXPECT_NE(base.second, other.second);
  }
  EXPECT_NE(base.second, texts(scaled, Pass::forward, 0).second);
}

}  // namespace
}  // namespace periplus::plan
