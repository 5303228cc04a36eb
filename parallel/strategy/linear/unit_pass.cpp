#include "parallel/strategy/linear/unit_pass.h"

#include <algorithm>

#include <fmt/format.h>

#include "parallel/strategy/heads.h"

namespace periplus::strategy::linear {

using plan::Mode;
using plan::View;

const Units& units_of(plan::ProgramBuilder& program, const LinearAttentionProblem& problem) {
  return program.in_common<Units>([&] { return Units(problem.layout); });
}

UnitPass::UnitPass(plan::ProgramBuilder& program, const LinearAttentionProblem& problem, const Slots& on, Pass pass, int groups,
                   bool mirrored)
    : program_(program), problem_(problem), on_(on), pass_(pass), mirrored_(mirrored), units_(units_of(program, problem)) {
  const View came = mirrored ? on_.following : on_.incoming;
  for (int g = 0; g < groups; ++g) {
    const HeadRange share = HeadRange::share(problem.heads, 1, g, groups);
    heads_.push_back({share.first, share.count});
    states_.push_back(backward() ? state_scratch("doutgoing", g, std::ssize(own())) : came.heads_at(share.first, share.count));
  }
  const std::vector<kernels::UnitRun> runs = units_.runs_of(program.rank());
  whole_ = {program.new_runs(runs), problem.transition(), problem.scale_or_default()};
  if (mirrored) make_token_scratch();
  for (std::size_t i = 0; i < own().size(); ++i) {
    std::vector<kernels::UnitRun> part;
    for (kernels::UnitRun run : runs) {
      if (run.unit != static_cast<std::int64_t>(i)) continue;
      run.row0 -= units_.all()[static_cast<std::size_t>(own()[i])].row0;
      run.unit = 0;
      part.push_back(run);
    }
    parts_.push_back({own().size() == 1 ? whole_.runs : program.new_runs(part), whole_.transition, whole_.scale});
  }
}

View UnitPass::scratch(std::string_view name, int group, std::int64_t count, std::int64_t width) {
  const auto& [first, heads] = heads_[static_cast<std::size_t>(group)];
  return program_.scratch(fmt::format("{}{}.{}", mirrored_ ? "mirrored_" : "", name, group), accumulator_of(problem_.dtype), count, heads,
                          width);
}

View UnitPass::element_scratch(std::string_view name, int group, std::int64_t count) {
  return scratch(name, group, count, problem_.element_width());
}

View UnitPass::state_scratch(std::string_view name, int group, std::int64_t count) {
  return scratch(name, group, count, problem_.state_width());
}

View UnitPass::token_scratch(std::string_view name, View like) {
  if (!like.present()) return {};
  return program_.scratch(fmt::format("mirrored_{}", name), program_.dtype_of(like), like.rows, problem_.heads, program_.width_of(like));
}

void UnitPass::make_token_scratch() {
  mirrored_decay_ = token_scratch("log_decay", on_.inputs.log_decay);
  if (mirrored_decay_.present()) program_.mirror_decay({"mirror"}, whole_.runs, on_.inputs.log_decay, mirrored_decay_);
  mirrored_out_ = token_scratch("out", on_.out);
  const auto& to = on_.gradients;
  mirrored_gradients_ = {token_scratch("dq", to.dq), token_scratch("dk", to.dk), token_scratch("dv", to.dv),
                         token_scratch("dlog_decay", to.dlog_decay)};
}

/// The mirrored pass is that of the other direction with q and k exchanged, and its scale is left for the end.
View UnitPass::make_elements(int group) {
  const View elements = element_scratch("elements", group, std::ssize(own()));
  const auto& [first, count] = heads_[static_cast<std::size_t>(group)];
  plan::ProgramBuilder::UnitInputs inputs = on_.inputs.heads_at(first, count);
  plan::ProgramBuilder::Recurrence how = whole_;
  if (mirrored_) {
    std::swap(inputs.q, inputs.k);
    how.scale = 1;
  }
  if (backward()) inputs.v = on_.dout.heads_at(first, count);
  if (reverse()) {
    program_.unit_states_backward({"elements", group}, inputs, how, inputs.v, elements);
  } else {
    program_.unit_states({"elements", group}, inputs, how, elements);
  }
  return elements;
}

void UnitPass::scan(plan::Label label, View elements, plan::Range folds, View states, Mode mode) {
  program_.unit_scan(label, elements, folds, whole_.transition, reverse(), states, mode);
}

void UnitPass::apply(int group) { emit_apply(group, 0, problem_.layout.rows_of(program_.rank()), whole_, 0, std::ssize(own())); }

void UnitPass::apply(int group, std::int64_t own_unit) {
  const Unit& unit = units_.all()[static_cast<std::size_t>(own()[static_cast<std::size_t>(own_unit)])];
  emit_apply(group, unit.row0, unit.rows, parts_[static_cast<std::size_t>(own_unit)], own_unit, 1);
}

void UnitPass::emit_apply(int group, std::int64_t row0, std::int64_t rows, const plan::ProgramBuilder::Recurrence& how, std::int64_t unit,
                          std::int64_t units) {
  if (mirrored_) return emit_mirrored(group, row0, rows, how, unit, units);
  const auto& [first, count] = heads_[static_cast<std::size_t>(group)];
  const auto part = [&, first = first, count = count](View view) { return view.rows_at(row0, rows).heads_at(first, count); };
  const auto inputs = on_.inputs.rows_at(row0, rows).heads_at(first, count);
  const View incoming = on_.incoming.rows_at(unit, units).heads_at(first, count);
  if (backward()) {
    program_.unit_apply_backward({"recurrence", group}, inputs, how, incoming, part(on_.dout), states(group).rows_at(unit, units),
                                 on_.gradients.rows_at(row0, rows).heads_at(first, count));
  } else {
    program_.unit_apply({"recurrence", group}, inputs, how, incoming, part(on_.out));
  }
}

void UnitPass::emit_mirrored(int group, std::int64_t row0, std::int64_t rows, plan::ProgramBuilder::Recurrence how, std::int64_t unit,
                             std::int64_t units) {
  const auto& [first, count] = heads_[static_cast<std::size_t>(group)];
  const auto part = [&, first = first, count = count](const auto& of) { return of.rows_at(row0, rows).heads_at(first, count); };
  const auto inputs = part(on_.inputs);
  auto decayed = inputs;
  decayed.log_decay = part(mirrored_decay_);
  auto unscaled = how;
  unscaled.scale = 1, unscaled.mirrored = true;
  const View following = on_.following.rows_at(unit, units).heads_at(first, count);
  const plan::Label recurrence{"mirrored", group}, sum{"add mirrored", group};
  if (backward()) {
    const auto gradients = part(mirrored_gradients_);
    const View dleaving = states(group).rows_at(unit, units);
    program_.decay_states({"decay", group}, how.runs, inputs.log_decay, dleaving);
    program_.unit_apply_backward(recurrence, decayed, unscaled, following, part(on_.dout), dleaving, gradients);
    program_.add_mirrored_backward(sum, inputs, how, part(on_.dout), gradients, part(on_.gradients));
  } else {
    program_.unit_apply(recurrence, decayed, unscaled, following, part(mirrored_out_));
    program_.add_mirrored(sum, inputs, how, part(mirrored_out_), part(on_.out));
  }
}

}  // namespace periplus::strategy::linear
