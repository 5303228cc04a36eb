#include "parallel/strategy/linear/lasp2.h"

#include <algorithm>
#include <vector>

namespace periplus::strategy::linear {
namespace {

using plan::Message;
using plan::Mode;
using plan::ProgramBuilder;
using plan::View;

/// The elements of a group of heads, of all units in the order of the sequence. The other ranks' arrive while later steps run.
/// Ranks without tokens take no part.
View gather(ProgramBuilder& program, UnitPass& pass, int group) {
  const Units& units = pass.units();
  const View own = pass.make_elements(group);
  if (pass.own().empty() || std::ssize(pass.own()) == units.count()) return own;
  const View all = pass.element_scratch("gathered", group, units.count());
  std::vector<Message> sends, receives;
  for (int peer = 0; peer < units.ranks(); ++peer) {
    if (units.of_rank(peer).empty()) continue;
    for (std::int64_t i = 0; i < own.rows; ++i) sends.push_back({peer, own.rows_at(i, 1)});
    for (const std::int64_t unit : units.of_rank(peer)) receives.push_back({peer, all.rows_at(unit, 1)});
  }
  program.exchange({"elements", group}, group % plan::kPlanLanes, sends, receives);  // latencies side by side
  for (std::int64_t i = 0; i < own.rows; ++i) {
    // Only another unit of the rank folds it.
    const std::int64_t unit = pass.own()[static_cast<std::size_t>(i)];
    const auto folds = [&](const kernels::UnitFold& fold) { return fold.begin <= unit && unit < fold.end; };
    if (std::ranges::any_of(pass.folds_of(program.rank()), folds)) {
      program.copy({"own elements", group}, own.rows_at(i, 1), all.rows_at(unit, 1));
    }
  }
  return all;
}

void emit(ProgramBuilder& program, const LinearAttentionProblem&, UnitPass& pass) {
  const bool gathers = any_state_passes(pass.units());
  const auto elements = [&](int group) { return gathers ? gather(program, pass, group) : pass.element_scratch("elements", group, 0); };
  std::vector<kernels::UnitFold> folds = pass.folds_of(program.rank());
  if (!gathers) {
    for (kernels::UnitFold& fold : folds) fold.begin = fold.end = 0;
  }
  const plan::Range own_folds = program.new_folds(folds);
  // All elements first: what the last group's messages hide behind is the longest there is.
  std::vector<View> all;
  for (int group = 0; group < pass.groups(); ++group) all.push_back(elements(group));
  for (int group = 0; group < pass.groups(); ++group) {
    pass.scan({"fold", group}, all[static_cast<std::size_t>(group)], own_folds, pass.states(group), Mode::write);
    pass.apply(group);
  }
}

std::int64_t bytes_sent(const LinearAttentionProblem& problem, Pass) {
  const Units units(problem.layout);
  if (!any_state_passes(units)) return 0;
  std::int64_t peers = -1;
  for (int rank = 0; rank < units.ranks(); ++rank) peers += units.of_rank(rank).empty() ? 0 : 1;
  return peers * units.count() * problem.heads * problem.element_width() *
         static_cast<std::int64_t>(size_of(accumulator_of(problem.dtype)));
}

}  // namespace

// Three groups: while the elements of one travel those of the next are made, and when the first group's recurrence begins a third of
// the bytes is all that has not had time to arrive. One group has nothing to hide behind; more are smaller messages for little.
Strategy lasp2_strategy() { return {"lasp2", "one all-gather of the units' states, folded by every rank", 3, emit, bytes_sent}; }

}  // namespace periplus::strategy::linear
