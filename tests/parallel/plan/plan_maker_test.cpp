#include "parallel/plan/plan_maker.h"

#include <gtest/gtest.h>

#include "parallel/linear_attention.h"
#include "parallel/plan/pair_bands.h"
#include "parallel/plan/print.h"
#include "parallel/strategy/linear/strategy.h"
#include "tests/parallel/plan/plan_cases.h"

namespace periplus::plan {
namespace {

using test::Lengths;

const Lengths kDocuments{0, 31, 32, 70};
const std::vector<MaskSpec> kMasks{{}, {.causal = true, .window_left = 5}};

std::vector<std::string> texts_of(const Plan& plan) {
  std::vector<std::string> texts{std::to_string(plan.claim.bytes_sent)};
  for (const Program& program : plan.programs) texts.push_back(to_json(program));
  return texts;
}

TEST(PlanMaker, MakesTheSamePlanAfterAnyOther) {
  PlanMaker maker;
  for (const int ranks : {6, 3, 8}) {
    for (const LayoutKind layout : {LayoutKind::zigzag, LayoutKind::striped}) {
      for (const MaskSpec& mask : kMasks) {
        const AttentionProblem problem = test::ring_problem(layout, ranks, kDocuments, mask);
        for (const strategy::Strategy& strategy : strategy::strategies()) {
          const AttentionOptions options{.strategy = std::string(strategy.name)};
          if (!strategy::refusal(strategy, problem, options).empty()) continue;
          for (const Pass pass : {Pass::forward, Pass::backward}) {
            ASSERT_EQ(texts_of(make_plan(problem, options, pass, maker)), texts_of(make_plan(problem, options, pass)))
                << strategy.name << ", " << ranks << " ranks";
          }
        }
      }
    }
  }
}

TEST(PlanMaker, MakesTheSameLinearPlanAfterAnyOther) {
  PlanMaker maker;
  for (const int ranks : {5, 2, 6}) {
    const LinearAttentionProblem problem{.layout = SequenceLayout::make(LayoutKind::zigzag, ranks, kDocuments), .heads = 4};
    for (const strategy::linear::Strategy& strategy : strategy::linear::strategies()) {
      const LinearAttentionOptions options{.strategy = std::string(strategy.name)};
      for (const Pass pass : {Pass::forward, Pass::backward}) {
        ASSERT_EQ(texts_of(make_plan(problem, options, pass, maker)), texts_of(make_plan(problem, options, pass)))
            << strategy.name << ", " << ranks << " ranks";
      }
    }
  }
}

TEST(PairBands, AreThoseOfTheirLayoutAndMask) {
  PairBands pairs;
  for (const bool again : {false, true}) {
    for (const LayoutKind kind : {LayoutKind::contiguous, LayoutKind::zigzag}) {
      for (const MaskSpec& spec : kMasks) {
        const SequenceLayout layout = SequenceLayout::make(kind, 4, kDocuments);
        const Mask mask(spec, kDocuments);
        for (int q = 0; q < 4; ++q) {
          for (int k = 0; k < 4; ++k) {
            std::vector<Band> expected;
            append_bands_between(layout, mask, q, k, expected);
            const std::span<const Band> found = pairs.between(layout, mask, q, k);
            EXPECT_EQ(std::vector(found.begin(), found.end()), expected) << q << " " << k << (again ? ", again" : "");
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace periplus::plan
