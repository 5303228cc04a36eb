// The steps of linear attention.
#include "parallel/plan/builder.h"
#include "parallel/plan/pool.h"

namespace periplus::plan {

ProgramBuilder::UnitInputs ProgramBuilder::UnitInputs::rows_at(std::int64_t first, std::int64_t count) const {
  return {q.rows_at(first, count), k.rows_at(first, count), v.rows_at(first, count), log_decay.rows_at(first, count),
          beta.rows_at(first, count)};
}

ProgramBuilder::UnitInputs ProgramBuilder::UnitInputs::heads_at(std::int64_t first, std::int64_t count) const {
  return {q.heads_at(first, count), k.heads_at(first, count), v.heads_at(first, count), log_decay.heads_at(first, count),
          beta.heads_at(first, count)};
}

ProgramBuilder::UnitGradients ProgramBuilder::UnitGradients::rows_at(std::int64_t first, std::int64_t count) const {
  return {dq.rows_at(first, count), dk.rows_at(first, count), dv.rows_at(first, count), dlog_decay.rows_at(first, count),
          dbeta.rows_at(first, count)};
}

ProgramBuilder::UnitGradients ProgramBuilder::UnitGradients::heads_at(std::int64_t first, std::int64_t count) const {
  return {dq.heads_at(first, count), dk.heads_at(first, count), dv.heads_at(first, count), dlog_decay.heads_at(first, count),
          dbeta.heads_at(first, count)};
}

Range ProgramBuilder::new_runs(std::span<const kernels::UnitRun> runs) { return append(program_.runs, runs); }
Range ProgramBuilder::new_folds(std::span<const kernels::UnitFold> folds) { return append(program_.folds, folds); }

void ProgramBuilder::emit(Op op, Label label, std::span<const Access> accesses, const Recurrence& how) {
  emit(op, label, accesses, std::span<const Band>(), how.scale);
  Step& step = program_.steps.back();
  step.runs = how.runs;
  step.transition = how.transition;
  step.mirrored = how.mirrored;
}

void ProgramBuilder::unit_states(Label label, const UnitInputs& on, const Recurrence& how, View elements) {
  if (elements.empty()) return;
  const Access accesses[] = {{on.k}, {on.v}, {on.log_decay}, {on.beta}, {elements, Mode::write}};
  emit(Op::unit_states, label, accesses, how);
}

void ProgramBuilder::unit_states_backward(Label label, const UnitInputs& on, const Recurrence& how, View dout, View elements) {
  if (elements.empty()) return;
  const Access accesses[] = {{on.q}, {on.k}, {on.log_decay}, {on.beta}, {dout}, {elements, Mode::write}};
  emit(Op::unit_states_backward, label, accesses, how);
}

void ProgramBuilder::unit_scan(Label label, View elements, Range folds, kernels::Transition transition, bool reverse, View states,
                               Mode mode) {
  if (states.empty()) return;
  const Access accesses[] = {{elements}, {states, mode}};
  emit(Op::unit_scan, label, accesses);
  Step& step = program_.steps.back();
  step.folds = folds;
  step.transition = transition;
  step.reverse = reverse;
}

void ProgramBuilder::unit_apply(Label label, const UnitInputs& on, const Recurrence& how, View incoming, View out) {
  if (out.empty()) return;
  const Access accesses[] = {{on.q}, {on.k}, {on.v}, {on.log_decay}, {on.beta}, {incoming}, {out, Mode::write}};
  emit(Op::unit_apply, label, accesses, how);
}

void ProgramBuilder::unit_apply_backward(Label label, const UnitInputs& on, const Recurrence& how, View incoming, View dout, View doutgoing,
                                         const UnitGradients& to) {
  if (to.dq.empty()) return;
  const Access accesses[] = {{on.q},
                             {on.k},
                             {on.v},
                             {on.log_decay},
                             {on.beta},
                             {incoming},
                             {dout},
                             {doutgoing},
                             {to.dq, Mode::write},
                             {to.dk, Mode::write},
                             {to.dv, Mode::write},
                             {to.dlog_decay, Mode::write},
                             {to.dbeta, Mode::write}};
  emit(Op::unit_apply_backward, label, accesses, how);
}

void ProgramBuilder::split_elements(Label label, View elements, View transitions, View added) {
  if (elements.empty()) return;
  const Access accesses[] = {{elements}, {transitions, Mode::write}, {added, Mode::write}};
  emit(Op::split_elements, label, accesses);
}

void ProgramBuilder::mirror_decay(Label label, Range runs, View log_decay, View mirrored) {
  if (mirrored.empty()) return;
  const Access accesses[] = {{log_decay}, {mirrored, Mode::write}};
  emit(Op::mirror_decay, label, accesses, Recurrence{.runs = runs});
}

void ProgramBuilder::decay_states(Label label, Range runs, View log_decay, View states) {
  if (!log_decay.present() || states.empty()) return;
  const Access accesses[] = {{log_decay}, {states, Mode::add}};
  emit(Op::decay_states, label, accesses, Recurrence{.runs = runs});
}

void ProgramBuilder::add_mirrored(Label label, const UnitInputs& on, const Recurrence& how, View mirrored, View out) {
  if (out.empty()) return;
  const Access accesses[] = {{on.q}, {on.k}, {on.v}, {mirrored}, {out, Mode::add}};
  emit(Op::add_mirrored, label, accesses, how);
}

void ProgramBuilder::add_mirrored_backward(Label label, const UnitInputs& on, const Recurrence& how, View dout, const UnitGradients& from,
                                           const UnitGradients& to) {
  if (to.dq.empty()) return;
  const Access accesses[] = {{on.q},
                             {on.k},
                             {on.v},
                             {dout},
                             {from.dq},
                             {from.dk},
                             {from.dv},
                             {from.dlog_decay},
                             {to.dq, Mode::add},
                             {to.dk, Mode::add},
                             {to.dv, Mode::add},
                             {to.dlog_decay, Mode::add}};
  emit(Op::add_mirrored_backward, label, accesses, how);
}

void ProgramBuilder::extend_values(Label label, Range runs, View values, View extended) {
  if (values.empty()) return;
  const Access accesses[] = {{values}, {extended, Mode::write}};
  emit(Op::extend_values, label, accesses, Recurrence{.runs = runs});
}

void ProgramBuilder::cut_values(Label label, Range runs, View extended, View values) {
  if (values.empty()) return;
  const Access accesses[] = {{extended}, {values, Mode::write}};
  emit(Op::cut_values, label, accesses, Recurrence{.runs = runs});
}

void ProgramBuilder::normalise(Label label, Range runs, double epsilon, View extended, View out, View normaliser) {
  if (out.empty()) return;
  const Access accesses[] = {{extended}, {out, Mode::write}, {normaliser, Mode::write}};
  emit(Op::normalise, label, accesses, Recurrence{.runs = runs});
  program_.steps.back().epsilon = epsilon;
}

void ProgramBuilder::normalise_backward(Label label, Range runs, View dout, View out, View normaliser, View extended) {
  if (dout.empty()) return;
  const Access accesses[] = {{dout}, {out}, {normaliser}, {extended, Mode::write}};
  emit(Op::normalise_backward, label, accesses, Recurrence{.runs = runs});
}

void ProgramBuilder::join_elements(Label label, View transitions, View added, View elements) {
  if (elements.empty()) return;
  const Access accesses[] = {{transitions}, {added}, {elements, Mode::write}};
  emit(Op::join_elements, label, accesses);
}

}  // namespace periplus::plan
