// Damages valid plans of softmax attention mechanically, one fault each, and counts how many verify() notices.
#include "tests/parallel/plan/mutants.h"

#include "tests/parallel/plan/plan_cases.h"

namespace periplus::plan {
namespace {

using namespace test;

/// Equivalent: the step still computes the same pairs.
Outcome wrong_band(Victim& v, LooseSteps& steps) {
  const auto i = v.step(steps, [](const LooseStep& s) { return !s.bands.empty(); });
  if (!i) return Outcome::none;
  std::vector<Band>& bands = steps[*i].bands;
  const auto before = pairs_of(bands);
  const std::size_t b = v.pick(bands.size()), how = v.pick(8);
  const std::array<std::int64_t Band::*, 6> fields{&Band::q0, &Band::q1, &Band::k0, &Band::k1, &Band::lo, &Band::hi};
  if (how < 6) {
    bands[b].*fields[how] += v.sign();
  } else if (how == 6) {
    bands.push_back(Band(bands[b]));
  } else {
    bands.erase(bands.begin() + static_cast<std::ptrdiff_t>(b));
  }
  v.what = fmt::format("step {} band {} change {}", *i, b, how);
  return pairs_of(bands) == before ? Outcome::equivalent : Outcome::fault;
}

/// Moves the heads of one operand, of keys and values, or of all query-like operands of an attend.
Outcome wrong_heads(Victim& v, LooseSteps& steps) {
  const auto i = v.step(steps, [](const LooseStep& s) { return is_attend(s) && !s.bands.empty(); });
  if (!i) return Outcome::none;
  LooseStep& s = steps[*i];
  const std::size_t how = v.pick(3), one = v.pick(s.accesses.size());
  const int by = v.sign();
  const std::int64_t kv = s.accesses[attend_operand::k].view.heads;
  for (std::size_t operand = 0; operand < s.accesses.size(); ++operand) {
    if (how == 0 ? operand != one : has_keys(operand) != (how == 1)) continue;
    View& view = s.accesses[operand].view;
    // Two KV heads in all: the other group's place. Where a step has all heads, one fewer.
    if (kv == 1) {
      view.head0 = view.head0 == 0 ? view.heads : 0;
    } else {
      view.heads -= 1, view.head0 += by > 0 ? 1 : 0;
    }
  }
  v.what = fmt::format("step {} heads moved, way {}", *i, how);
  return Outcome::fault;
}

/// A copy that brings rows into another order puts two runs of rows in each other's place, or one a row off.
Outcome wrong_move(Victim& v, LooseSteps& steps) {
  const auto i = v.step(steps, [](const LooseStep& s) { return s.step.moves.count > 1; });
  if (!i) return Outcome::none;
  const Range range = steps[*i].step.moves;
  RowMove& first = v.program().moves[range.begin + v.pick(range.count)];
  RowMove& second = v.program().moves[range.begin + v.pick(range.count)];
  if (&first == &second) return Outcome::none;
  if (first.rows == second.rows) {
    std::swap(first.to, second.to);
  } else {
    first.to += v.sign();
  }
  v.what = fmt::format("step {} rows {} moved to {}", *i, first.from, first.to);
  return Outcome::fault;
}

constexpr std::array kKinds{Kind{"order", swap_neighbours},
                            Kind{"wrong peer", wrong_peer},
                            Kind{"phase +-1 on one side", wrong_phase},
                            Kind{"lane of one side", wrong_lane},
                            Kind{"message size", shorter_message},
                            Kind{"operand size", shorter_operand},
                            Kind{"missing exchange", missing_exchange},
                            Kind{"missing compute", missing_compute},
                            Kind{"wrong band", wrong_band},
                            Kind{"missing dependency", missing_dependency},
                            Kind{"slot reused too early", slot_reused_too_early},
                            Kind{"wrong slot", wrong_slot},
                            Kind{"wrong mode", wrong_mode},
                            Kind{"wrong head range", wrong_heads},
                            Kind{"wrong move", wrong_move, false}};

/// Enough heads for the pieces of the options.
AttentionProblem problem_for(const AttentionOptions& options, LayoutKind layout, int ranks, const periplus::test::Lengths& cu,
                             const MaskSpec& mask) {
  const AttentionProblem few = periplus::test::ring_problem(layout, ranks, cu, mask, 4, 2);
  return options.pieces == 1 ? few : periplus::test::ring_problem(layout, ranks, cu, mask, 24, 12);
}

/// Plans of 2 to 5 ranks that the options' strategy accepts; where they are split, with an attend for each KV head.
std::vector<Base> base_plans(const AttentionOptions& options) {
  const periplus::test::Lengths one{0, 37}, documents{0, 9, 10, 22, 40};
  std::vector<Base> bases;
  for (int ranks = 2; ranks <= 5; ++ranks) {
    for (const LayoutKind layout : periplus::test::kLayoutKinds) {
      for (const bool packed : {false, true}) {
        const periplus::test::Lengths& cu = packed ? documents : one;
        const MaskSpec mask = packed ? MaskSpec{true, 5, -1, 1} : MaskSpec{};
        for (const bool split : {false, true}) {
          AttentionProblem problem = problem_for(options, layout, ranks, cu, mask);
          problem.sink = problem.lse_gradient = split == packed;
          problem.contiguous_kv = !split;
          problem.dtype = packed ? DType::bf16 : DType::f32;
          if (!periplus::test::refusal(problem, options).empty()) continue;
          for (const Pass pass : {Pass::forward, Pass::backward}) {
            Base base{periplus::test::describe(layout, ranks, cu, mask, pass) + (split ? " by KV head" : ""),
                      make_plan(problem, options, pass)};
            for (Program& program : base.plan.programs) {
              if (split) split_by_kv_head(program);
            }
            bases.push_back(std::move(base));
          }
        }
      }
    }
  }
  return bases;
}

class VerifyMutants : public testing::TestWithParam<AttentionOptions> {};

TEST_P(VerifyMutants, NearlyEveryFaultIsFound) {
  Mutants mutants;
  mutants.damage_all(base_plans(GetParam()), kKinds);
  mutants.expect_killed(kKinds, 15, 300);
}

INSTANTIATE_TEST_SUITE_P(Strategies, VerifyMutants, testing::ValuesIn(periplus::test::variants()), periplus::test::name_of_param);

}  // namespace
}  // namespace periplus::plan
