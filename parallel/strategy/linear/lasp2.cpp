#include "parallel/strategy/linear/lasp2.h"

#include <algorithm>
#include <vector>

#include "parallel/strategy/strategy.h"

namespace periplus::strategy::linear {
namespace {

using plan::Message;
using plan::Mode;
using plan::ProgramBuilder;
using plan::View;

/// A state that ends with its unit goes nowhere: then nothing is gathered. Both passes agree.
bool any_state_passes(const Units& units) {
  return std::ranges::any_of(folds_of_all(units, false), [](const kernels::UnitFold& fold) { return fold.begin < fold.end; });
}

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
  program.exchange({"elements", group}, kBlockLane, sends, receives);
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
  View now = elements(0);
  for (int group = 0; group < pass.groups(); ++group) {
    const View next = group + 1 < pass.groups() ? elements(group + 1) : View{};
    pass.scan({"fold", group}, now, own_folds, pass.states(group), Mode::write);
    pass.apply(group);
    now = next;
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

// Two groups: while the elements of the first travel those of the second are made, and while the second's travel the first runs
// its recurrence. One has nothing to hide behind; more are smaller messages for the same overlap.
Strategy lasp2_strategy() { return {"lasp2", "one all-gather of the units' states, folded by every rank", 2, emit, bytes_sent}; }

}  // namespace periplus::strategy::linear
