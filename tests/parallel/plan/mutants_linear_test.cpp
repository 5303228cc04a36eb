// Damages valid plans of linear attention mechanically, one fault each, and counts how many verify() notices.
#include "tests/parallel/linear_cases.h"
#include "tests/parallel/plan/mutants.h"

namespace periplus::plan {
namespace {

using namespace test;
using namespace periplus::test;

bool has_runs(const LooseStep& s) { return s.step.runs.count > 0; }

/// Gives a step a copy of its runs or folds, so that a change is its own.
template <class T>
std::span<T> own(std::vector<T>& pool, Range& range) {
  const auto begin = static_cast<std::uint32_t>(pool.size());
  for (std::uint32_t i = 0; i < range.count; ++i) pool.push_back(T(pool[range.begin + i]));
  range.begin = begin;
  return std::span(pool).subspan(begin, range.count);
}

/// Equivalent: another way to fold nothing.
Outcome wrong_fold(Victim& v, LooseSteps& steps) {
  const auto i = v.step(steps, [](const LooseStep& s) { return s.step.folds.count > 0; });
  if (!i) return Outcome::none;
  const auto folds = own(v.program().folds, steps[*i].step.folds);
  kernels::UnitFold& fold = folds[v.pick(folds.size())];
  const bool nothing = fold.begin == fold.end;
  const std::array<std::int64_t kernels::UnitFold::*, 3> fields{&kernels::UnitFold::target, &kernels::UnitFold::begin,
                                                                &kernels::UnitFold::end};
  const std::size_t how = v.pick(4);
  if (how == 3 && folds.size() > 1) {
    if (folds[0].begin == folds[1].begin && folds[0].end == folds[1].end) return Outcome::equivalent;
    std::swap(folds[0].target, folds[1].target);
    const auto empty = [](const kernels::UnitFold& f) { return f.begin == f.end; };
    if (empty(folds[0]) && empty(folds[1])) return Outcome::equivalent;
  } else {
    fold.*fields[how % 3] += v.sign();
    if (how % 3 != 0 && nothing && fold.begin == fold.end) return Outcome::equivalent;
  }
  v.what = fmt::format("step {} fold change {}", *i, how);
  return Outcome::fault;
}

Outcome wrong_run(Victim& v, LooseSteps& steps) {
  const auto i = v.step(steps, has_runs);
  if (!i) return Outcome::none;
  const auto runs = own(v.program().runs, steps[*i].step.runs);
  kernels::UnitRun& run = runs[v.pick(runs.size())];
  const std::size_t how = v.pick(6);
  const bool has_units = steps[*i].step.op <= Op::unit_apply_backward || steps[*i].step.op == Op::decay_states;
  if (how == 2 && !has_units) return Outcome::equivalent;
  switch (how) {
    case 0:
      run.row0 += v.sign();
      break;
    case 1:
      run.rows += v.sign();
      break;
    case 2:
      run.unit += v.sign();
      break;
    case 3:
      run.enters = !run.enters;
      break;
    case 4:
      run.leaves = !run.leaves;
      break;
    default:
      --steps[*i].step.runs.count;
  }
  v.what = fmt::format("step {} {} run change {}", *i, info(steps[*i].step.op).name, how);
  return Outcome::fault;
}

Outcome wrong_transition(Victim& v, LooseSteps& steps) {
  const auto i = v.step(steps, [](const LooseStep& s) { return s.step.runs.count + s.step.folds.count > 0; });
  if (!i) return Outcome::none;
  kernels::Transition& transition = steps[*i].step.transition;
  transition = static_cast<kernels::Transition>((static_cast<std::size_t>(transition) + 1 + v.pick(3)) % 4);
  v.what = fmt::format("step {} transition {}", *i, static_cast<int>(transition));
  return Outcome::fault;
}

Outcome wrong_direction(Victim& v, LooseSteps& steps) {
  const auto& folds = v.program().folds;
  const auto i = v.step(steps, [&](const LooseStep& s) {
    return std::ranges::any_of(std::span(folds).subspan(s.step.folds.begin, s.step.folds.count),
                               [](const kernels::UnitFold& fold) { return fold.begin < fold.end; });
  });
  if (!i) return Outcome::none;
  steps[*i].step.reverse = !steps[*i].step.reverse;
  v.what = fmt::format("step {} folds in the other direction", *i);
  return Outcome::fault;
}

/// Needs a plan with steps that can be mirrored.
Outcome wrong_mirror(Victim& v, LooseSteps& steps) {
  const auto i = v.step(steps, [](const LooseStep& s) { return s.step.op == Op::unit_apply || s.step.op == Op::unit_apply_backward; });
  if (!i) return Outcome::none;
  steps[*i].step.mirrored = !steps[*i].step.mirrored;
  v.what = fmt::format("step {} mirrored {}", *i, steps[*i].step.mirrored);
  return Outcome::fault;
}

/// Needs another step that scales q. Those of a mirrored pass scale nothing.
Outcome wrong_scale(Victim& v, LooseSteps& steps) {
  const auto scales = [](const LooseStep& s) { return has_runs(s) && s.step.op != Op::unit_states; };
  if (std::ranges::count_if(steps, scales) < 2) return Outcome::none;
  const auto i = v.step(steps, scales);
  steps[*i].step.scale *= 1.5;
  v.what = fmt::format("step {} scale", *i);
  return Outcome::fault;
}

/// Moves the rows or heads of one operand, or leaves an optional one out.
Outcome wrong_operand(Victim& v, LooseSteps& steps) {
  const auto i = v.step(steps, [](const LooseStep& s) { return !is_exchange(s); });
  if (!i) return Outcome::none;
  Access& access = steps[*i].accesses[v.pick(steps[*i].accesses.size())];
  if (!access.view.present() || access.view.empty()) return Outcome::none;
  const std::size_t how = v.pick(3);
  const std::int64_t all_heads = v.program().slot_of(access.view).heads;
  if (how == 0) {
    access.view.row0 += v.sign();
  } else if (how == 1 && access.view.heads < all_heads) {
    access.view.head0 = (access.view.head0 + 1) % (all_heads - access.view.heads + 1);
  } else {
    access.view.slot = kNoSlot;
  }
  v.what = fmt::format("step {} {} operand moved, way {}", *i, info(steps[*i].step.op).name, how);
  return Outcome::fault;
}

/// Moves the heads of all operands of a recurrence at once: each step for itself is right. Equivalent: nobody asks for the elements.
Outcome wrong_heads(Victim& v, LooseSteps& steps) {
  const auto i = v.step(
      steps, [&](const LooseStep& s) { return has_runs(s) && s.accesses[0].view.heads < v.program().slot_of(s.accesses[0].view).heads; });
  if (!i) return Outcome::none;
  const bool makes_elements = steps[*i].step.op == Op::unit_states || steps[*i].step.op == Op::unit_states_backward;
  if (makes_elements && !PlayedPlan(v.plan).result_is_used(v.rank, *i)) return Outcome::equivalent;
  for (Access& access : steps[*i].accesses) {
    if (!access.view.present() || v.program().slot_of(access.view).heads == access.view.heads) continue;
    access.view.head0 = access.view.head0 == 0 ? 1 : access.view.head0 - 1;
  }
  v.what = fmt::format("step {} {} all heads moved", *i, info(steps[*i].step.op).name);
  return Outcome::fault;
}

/// A token operand of the same shape in the place of another.
Outcome confused_operands(Victim& v, LooseSteps& steps) {
  const auto i = v.step(steps, has_runs);
  if (!i) return Outcome::none;
  std::vector<Access*> alike;
  for (Access& access : steps[*i].accesses) {
    if (access.view.present() && access.mode == steps[*i].accesses[0].mode) alike.push_back(&access);
  }
  Access *const a = alike[v.pick(alike.size())], *const b = alike[v.pick(alike.size())];
  if (a == b) return Outcome::none;
  std::swap(a->view, b->view);
  v.what = fmt::format("step {} {} operands swapped", *i, info(steps[*i].step.op).name);
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
                            Kind{"missing dependency", missing_dependency},
                            Kind{"slot reused too early", slot_reused_too_early, false},
                            Kind{"wrong slot", wrong_slot, false},
                            Kind{"wrong mode", wrong_mode},
                            Kind{"wrong fold", wrong_fold},
                            Kind{"wrong run", wrong_run},
                            Kind{"wrong transition", wrong_transition},
                            Kind{"wrong direction", wrong_direction},
                            Kind{"wrong mirror", wrong_mirror},
                            Kind{"wrong scale", wrong_scale, false},
                            Kind{"wrong operand", wrong_operand},
                            Kind{"wrong head range", wrong_heads, false},
                            Kind{"confused operands", confused_operands}};

/// Plans of 2 to 5 ranks; equal widths, so that operands can be confused.
std::vector<Base> base_plans(const LinearAttentionOptions& options) {
  std::vector<Base> bases;
  for (int ranks = 2; ranks <= 5; ++ranks) {
    std::vector<LinearCase> cases = linear_sweep(ranks, options);
    for (const LinearCase& c : extended_sweep(ranks, options)) cases.push_back(c);
    for (LinearCase c : cases) {
      c.head_size = c.value_size = 4;
      for (const Pass pass : {Pass::forward, Pass::backward}) {
        bases.push_back({fmt::format("{} ranks, {}, {}", ranks, to_string(c), pass == Pass::forward ? "forward" : "backward"),
                         make_plan(problem_of(c, DType::f32, ranks), c.options, pass)});
      }
    }
  }
  return bases;
}

class LinearMutants : public testing::TestWithParam<LinearAttentionOptions> {};

TEST_P(LinearMutants, NearlyEveryFaultIsFound) {
  Mutants mutants;
  mutants.damage_all(base_plans(GetParam()), kKinds);
  mutants.expect_killed(kKinds, 15, 300);
}

INSTANTIATE_TEST_SUITE_P(Strategies, LinearMutants, testing::ValuesIn(linear_variants()), name_of_linear_param);

}  // namespace
}  // namespace periplus::plan
