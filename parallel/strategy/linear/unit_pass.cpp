#include "parallel/strategy/linear/unit_pass.h"

#include <fmt/format.h>

#include "parallel/strategy/heads.h"

namespace periplus::strategy::linear {

using plan::Mode;
using plan::View;

UnitPass::UnitPass(plan::ProgramBuilder& program, const LinearAttentionProblem& problem, const Slots& on, Pass pass, int groups)
    : program_(program), problem_(problem), on_(on), pass_(pass), units_(problem.layout) {
  for (int g = 0; g < groups; ++g) {
    const HeadRange share = HeadRange::share(problem.heads, 1, g, groups);
    heads_.push_back({share.first, share.count});
    states_.push_back(reverse() ? state_scratch("doutgoing", g, std::ssize(own())) : on_.incoming.heads_at(share.first, share.count));
  }
  const std::vector<kernels::UnitRun> runs = units_.runs_of(program.rank());
  whole_ = {program.new_runs(runs), problem.transition(), problem.scale_or_default()};
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
  return program_.scratch(fmt::format("{}.{}", name, group), accumulator_of(problem_.dtype), count, heads, width);
}

View UnitPass::element_scratch(std::string_view name, int group, std::int64_t count) {
  return scratch(name, group, count, problem_.element_width());
}

View UnitPass::state_scratch(std::string_view name, int group, std::int64_t count) {
  return scratch(name, group, count, problem_.state_width());
}

plan::ProgramBuilder::UnitInputs UnitPass::inputs(int group) const {
  const auto& [first, count] = heads_[static_cast<std::size_t>(group)];
  return on_.inputs.heads_at(first, count);
}

View UnitPass::make_elements(int group) {
  const View elements = element_scratch("elements", group, std::ssize(own()));
  if (reverse()) {
    const auto& [first, count] = heads_[static_cast<std::size_t>(group)];
    program_.unit_states_backward({"elements", group}, inputs(group), whole_, on_.dout.heads_at(first, count), elements);
  } else {
    program_.unit_states({"elements", group}, inputs(group), whole_, elements);
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
  const auto& [first, count] = heads_[static_cast<std::size_t>(group)];
  const auto part = [&, first = first, count = count](View view) { return view.rows_at(row0, rows).heads_at(first, count); };
  const auto inputs = on_.inputs.rows_at(row0, rows).heads_at(first, count);
  const View incoming = on_.incoming.rows_at(unit, units).heads_at(first, count);
  if (reverse()) {
    program_.unit_apply_backward({"recurrence", group}, inputs, how, incoming, part(on_.dout), states(group).rows_at(unit, units),
                                 on_.gradients.rows_at(row0, rows).heads_at(first, count));
  } else {
    program_.unit_apply({"recurrence", group}, inputs, how, incoming, part(on_.out));
  }
}

std::vector<kernels::UnitFold> folds_of_all(const Units& units, bool reverse) {
  std::vector<kernels::UnitFold> folds(static_cast<std::size_t>(units.count()));
  for (int rank = 0; rank < units.ranks(); ++rank) {
    const auto own = units.of_rank(rank);
    const auto mine = reverse ? units.outgoing_of(rank) : units.incoming_of(rank);
    for (std::size_t i = 0; i < own.size(); ++i) folds[static_cast<std::size_t>(own[i])] = mine[i];
  }
  return folds;
}

}  // namespace periplus::strategy::linear
