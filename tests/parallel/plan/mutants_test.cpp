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

/// Slots that could stand in for one: with room for the view, and of its heads, width and type.
std::vector<SlotId> stand_ins(const Program& program, const View& view) {
  std::vector<SlotId> found;
  const Slot& own = program.slot_of(view);
  for (std::size_t s = 0; s < program.slots.size(); ++s) {
    const Slot& other = program.slots[s];
    const bool alike = other.rows >= view.row0 + view.rows && other.heads == own.heads && other.width == own.width &&
                       other.dtype == own.dtype && other.role == own.role;
    if (alike && static_cast<SlotId>(s) != view.slot) found.push_back(static_cast<SlotId>(s));
  }
  return found;
}

/// One of two operands that twins use to be, or one side of a copy or sum, is another slot. Its twin stays.
Outcome one_twin(Victim& v, LooseSteps& steps) {
  const auto i = v.step(steps, [](const LooseStep& s) { return !is_exchange(s) && (!is_attend(s) || !s.bands.empty()); });
  if (!i) return Outcome::none;
  std::vector<Access>& accesses = steps[*i].accesses;
  const std::size_t operand = v.pick(accesses.size());
  View& view = accesses[operand].view;
  if (!view.present() || view.empty()) return Outcome::none;
  const std::vector<SlotId> others = stand_ins(v.program(), view);
  if (others.empty()) return Outcome::none;
  if (is_idle(v, steps[*i], *i)) return Outcome::equivalent;
  const SlotId before = std::exchange(view.slot, others[v.pick(others.size())]);
  const auto name = [&](SlotId slot) { return v.program().slots[static_cast<std::size_t>(slot)].name; };
  v.what = fmt::format("step {} {} has '{}' in place of '{}'", *i, info(steps[*i].step.op).name, name(view.slot), name(before));
  return Outcome::fault;
}

/// Keys and values, or dk and dv, of an attend are both of another block: they are twins still.
Outcome both_twins(Victim& v, LooseSteps& steps) {
  const auto i = v.step(steps, [](const LooseStep& s) { return is_attend(s) && !s.bands.empty(); });
  if (!i) return Outcome::none;
  std::vector<Access>& a = steps[*i].accesses;
  const bool gradients = steps[*i].step.op == Op::attend_backward && v.pick(2) == 0;
  View& first = a[gradients ? std::size_t{attend_backward_operand::dk} : std::size_t{attend_operand::k}].view;
  View& second = a[gradients ? std::size_t{attend_backward_operand::dv} : std::size_t{attend_operand::v}].view;
  const std::vector<SlotId> others = stand_ins(v.program(), first), of_second = stand_ins(v.program(), second);
  if (first.empty() || others.empty() || of_second.empty()) return Outcome::none;
  // Blocks take turns: the same number of another pair.
  const std::size_t other = v.pick(std::min(others.size(), of_second.size()));
  if (is_idle(v, steps[*i], *i)) return Outcome::equivalent;
  first.slot = others[other], second.slot = of_second[other];
  v.what = fmt::format("step {} {} in other slots", *i, gradients ? "dk and dv" : "k and v");
  return Outcome::fault;
}

/// Two messages of one size to a peer are sent in each other's place. Equivalent: nobody works with either.
Outcome crossed_messages(Victim& v, LooseSteps& steps) {
  const auto i = v.step(steps, [](const LooseStep& s) { return s.sends.size() > 1; });
  if (!i) return Outcome::none;
  std::vector<Message>& sends = steps[*i].sends;
  const std::size_t first = v.pick(sends.size() - 1);
  const auto alike = [&](const Message& m) {
    const Slot &a = v.program().slot_of(sends[first].view), &b = v.program().slot_of(m.view);
    return m.peer == sends[first].peer && m.view != sends[first].view &&
           v.program().bytes_of(m.view) == v.program().bytes_of(sends[first].view) && a.dtype == b.dtype;
  };
  const auto second = std::find_if(sends.begin() + static_cast<std::ptrdiff_t>(first) + 1, sends.end(), alike);
  if (second == sends.end()) return Outcome::none;
  PlayedPlan played(v.plan);
  if (!played.message_is_used(v.rank, *i, first) && !played.message_is_used(v.rank, *i, static_cast<std::size_t>(second - sends.begin())))
    return Outcome::equivalent;
  std::swap(sends[first].view, second->view);
  v.what = fmt::format("step {} sends {} and {} crossed", *i, first, second - sends.begin());
  return Outcome::fault;
}

constexpr std::array kKinds{Kind{"order", swap_neighbours},
                            Kind{"wrong peer", wrong_peer},
                            Kind{"phase +-1 on one side", wrong_phase},
                            Kind{"lane of one side", wrong_lane},
                            Kind{"message size", shorter_message},
                            Kind{"message shape", wider_message, false},
                            Kind{"operand size", shorter_operand},
                            Kind{"missing exchange", missing_exchange},
                            Kind{"missing compute", missing_compute},
                            Kind{"wrong band", wrong_band},
                            Kind{"missing dependency", missing_dependency},
                            Kind{"slot reused too early", slot_reused_too_early},
                            Kind{"wrong slot", wrong_slot},
                            Kind{"wrong mode", wrong_mode},
                            Kind{"wrong head range", wrong_heads},
                            Kind{"wrong move", wrong_move, false},
                            Kind{"one twin", one_twin, false},
                            Kind{"both twins", both_twins, false},
                            Kind{"crossed messages", crossed_messages, false}};

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
