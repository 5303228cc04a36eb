#include "parallel/strategy/linear/lasp2.h"

#include <algorithm>
#include <vector>

namespace periplus::strategy::linear {
namespace {

using plan::Message;
using plan::Mode;
using plan::ProgramBuilder;
using plan::View;

/// Sends rows of all heads, one for each of the rank's units, to every rank that has units, and receives theirs in the order of the
/// sequence. They arrive while later steps run.
void all_gather(ProgramBuilder& program, const UnitPass& pass, int group, const std::vector<View>& own, const View& all) {
  const Units& units = pass.units();
  std::vector<Message> sends, receives;
  for (int peer = 0; peer < units.ranks(); ++peer) {
    if (units.of_rank(peer).empty()) continue;
    for (const View& row : own) sends.push_back({peer, row});
    for (const std::int64_t unit : units.of_rank(peer)) receives.push_back({peer, all.rows_at(unit, 1)});
  }
  program.exchange({"elements", group}, group % plan::kPlanLanes, sends, receives);  // latencies side by side
}

/// The elements of a group of heads, of all units.
View gather(ProgramBuilder& program, UnitPass& pass, int group) {
  const View own = pass.make_elements(group), all = pass.element_scratch("gathered", group, pass.units().count());
  std::vector<View> rows;
  for (std::int64_t i = 0; i < own.rows; ++i) rows.push_back(own.rows_at(i, 1));
  all_gather(program, pass, group, rows, all);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    // Only another unit of the rank folds it.
    const std::int64_t unit = pass.own()[i];
    const auto folds = [&](const kernels::UnitFold& fold) { return fold.begin <= unit && unit < fold.end; };
    if (pass.keeps_transitions() || std::ranges::any_of(pass.folds_of(program.rank()), folds)) {
      program.copy({"own elements", group}, rows[i], all.rows_at(unit, 1));
    }
  }
  return all;
}

/// What the units add to a gradient; their transitions are those that forward kept.
View gather_added(ProgramBuilder& program, UnitPass& pass, int group) {
  const View own = pass.make_elements(group), all = pass.state_scratch("added", group, pass.units().count());
  std::vector<View> rows;
  for (std::int64_t i = 0; i < own.rows; ++i) {
    rows.push_back(all.rows_at(pass.own()[static_cast<std::size_t>(i)], 1));
    program.split_elements({"own elements", group}, own.rows_at(i, 1), {}, rows.back());
  }
  all_gather(program, pass, group, rows, all);
  return all;
}

void emit(ProgramBuilder& program, UnitPass& pass) {
  // Where no document goes on nothing has to be made or sent, in both passes.
  const bool gathers = pass.units().any_goes_on();
  // Ranks without tokens take no part.
  const bool alone = pass.own().empty() || std::ssize(pass.own()) == pass.units().count();
  const bool kept = pass.keeps_transitions();
  const auto elements = [&](int group) {
    if (!gathers) return pass.element_scratch("elements", group, 0);
    if (alone) return pass.make_elements(group);
    return kept && pass.reverse() ? gather_added(program, pass, group) : gather(program, pass, group);
  };
  std::vector<kernels::UnitFold> folds = pass.folds_of(program.rank());
  if (!gathers) {
    for (kernels::UnitFold& fold : folds) fold.begin = fold.end = 0;
  }
  const plan::Range own_folds = program.new_folds(folds);
  // All elements first: what the last group's messages hide behind is the longest there is.
  std::vector<View> all;
  for (int group = 0; group < pass.groups(); ++group) all.push_back(elements(group));
  for (int group = 0; group < pass.groups(); ++group) {
    View gathered = all[static_cast<std::size_t>(group)];
    if (kept && pass.reverse()) {
      const View added = gathered;
      gathered = pass.element_scratch("gathered", group, added.rows);
      program.join_elements({"join", group}, pass.transitions(group), added, gathered);
    }
    pass.scan({"fold", group}, gathered, own_folds, pass.states(group), Mode::write);
    if (kept && !pass.reverse()) program.split_elements({"keep", group}, gathered, pass.transitions(group), {});
    pass.apply(group);
  }
}

std::int64_t bytes_sent(const LinearAttentionProblem& problem, const LinearAttentionOptions& options, Pass pass) {
  const Units units(problem.layout);
  if (!units.any_goes_on()) return 0;
  std::int64_t peers = -1;
  for (int rank = 0; rank < units.ranks(); ++rank) peers += units.of_rank(rank).empty() ? 0 : 1;
  const bool kept = options.keep_transitions && pass == Pass::backward;
  return peers * units.count() * problem.heads * (kept ? problem.state_width() : problem.element_width()) *
         static_cast<std::int64_t>(size_of(accumulator_of(problem.dtype)));
}

}  // namespace

// Three groups: while the elements of one travel those of the next are made, and when the first group's recurrence begins a third of
// the bytes is all that has not had time to arrive. One group has nothing to hide behind; more are smaller messages for little.
Strategy lasp2_strategy() { return {"lasp2", "one all-gather of the units' states, folded by every rank", 3, true, emit, bytes_sent}; }

}  // namespace periplus::strategy::linear
