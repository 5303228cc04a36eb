#include "parallel/strategy/linear/chain.h"

#include <algorithm>
#include <vector>

namespace periplus::strategy::linear {
namespace {

using plan::Message;
using plan::Mode;
using plan::ProgramBuilder;
using plan::Range;
using plan::View;

/// The way of a state through all units: up the sequence, or down it for gradients.
class Way {
 public:
  Way(const Units& units, bool reverse) : units_(units), reverse_(reverse), folds_(reverse ? units.outgoing() : units.incoming()) {}

  std::int64_t length() const { return units_.count(); }
  std::int64_t unit(std::int64_t place) const { return reverse_ ? length() - 1 - place : place; }
  int rank(std::int64_t place) const { return units_.all()[static_cast<std::size_t>(unit(place))].rank; }
  /// Whether a state comes to the unit from the place before.
  bool arrives(std::int64_t place) const { return folded(place) > 0; }
  bool leaves(std::int64_t place) const { return place + 1 < length() && arrives(place + 1); }
  /// Whether what leaves goes on from what came, because one document fills the unit.
  bool passes_through(std::int64_t place) const { return leaves(place) && folded(place + 1) > 1; }
  bool travels(std::int64_t place) const { return leaves(place) && rank(place) != rank(place + 1); }

 private:
  std::int64_t folded(std::int64_t place) const {
    const kernels::UnitFold& fold = folds_[static_cast<std::size_t>(unit(place))];
    return fold.end - fold.begin;
  }
  const Units& units_;
  bool reverse_;
  std::span<const kernels::UnitFold> folds_;
};

class Chain {
 public:
  Chain(ProgramBuilder& program, UnitPass& pass)
      : program_(program), pass_(pass), way_(pass.units(), pass.reverse()), nothing_(fold(0)), one_(fold(1)) {}

  /// Slices follow each other at the distance of one unit. In a wave the unit that is furthest sends first, so that it is rid of
  /// one slice when the next comes. Neighbours use different lanes, so that a unit receives while it sends; with all three the two
  /// units of a zigzag rank in the middle of the way seldom meet on one.
  void emit() {
    for (std::int64_t wave = 0; wave < way_.length() + pass_.groups() - 1; ++wave) {
      if (wave < pass_.groups()) begin_slice(static_cast<int>(wave));
      const std::int64_t first = std::max<std::int64_t>(0, wave - pass_.groups() + 1);
      for (std::int64_t place = std::min(wave, way_.length() - 1); place >= first; --place) visit(place, static_cast<int>(wave - place));
    }
  }

 private:
  struct Slice {
    View elements, arriving, outgoing;
  };

  Range fold(std::int64_t count) {
    const kernels::UnitFold fold{0, 0, count};
    return program_.new_folds({&fold, 1});
  }
  bool own(std::int64_t place) const { return way_.rank(place) == program_.rank(); }
  /// Row of a unit's own elements and states.
  std::int64_t row(std::int64_t place) const { return std::ranges::lower_bound(pass_.own(), way_.unit(place)) - pass_.own().begin(); }

  void begin_slice(int k) {
    const std::int64_t count = std::ssize(pass_.own());
    bool sends = false;
    for (std::int64_t place = 0; place < way_.length(); ++place) sends |= own(place) && way_.leaves(place);
    const View states = pass_.states(k);
    slices_.push_back({sends ? pass_.make_elements(k) : pass_.element_scratch("elements", k, 0),
                       program_.is_sendable(states) ? states : pass_.state_scratch("arriving", k, count),
                       pass_.state_scratch("outgoing", k, sends ? count : 0)});
  }

  void visit(std::int64_t place, int k) {
    const Slice& slice = slices_[static_cast<std::size_t>(k)];
    if (own(place)) take(place, k, slice);
    if (way_.travels(place)) {
      std::vector<Message> sends, receives;
      if (own(place)) sends.push_back({way_.rank(place + 1), slice.outgoing.rows_at(row(place), 1)});
      if (own(place + 1)) receives.push_back({way_.rank(place), slice.arriving.rows_at(row(place + 1), 1)});
      program_.exchange({"slice", k}, static_cast<int>(place % plan::kPlanLanes), sends, receives);
    } else if (own(place) && way_.leaves(place)) {
      program_.copy({"slice", k}, slice.outgoing.rows_at(row(place), 1), slice.arriving.rows_at(row(place + 1), 1));
    }
    // Behind the message: the next unit waits for that, nobody for this.
    if (own(place)) pass_.apply(k, row(place));
  }

  /// Puts what has come to a unit in its place, and makes what leaves it.
  void take(std::int64_t place, int k, const Slice& slice) {
    const View state = pass_.states(k).rows_at(row(place), 1), came = slice.arriving.rows_at(row(place), 1);
    if (!way_.arrives(place)) {
      pass_.scan({"begin", k}, slice.elements.rows_at(0, 0), nothing_, state, Mode::write);
    } else if (came != state) {
      program_.copy({"arrive", k}, came, state);
    }
    if (!way_.leaves(place)) return;
    const View leaving = slice.outgoing.rows_at(row(place), 1);
    const bool through = way_.passes_through(place);
    if (through) program_.copy({"go on", k}, state, leaving);
    pass_.scan({"fold", k}, slice.elements.rows_at(row(place), 1), one_, leaving, through ? Mode::add : Mode::write);
  }

  ProgramBuilder& program_;
  UnitPass& pass_;
  Way way_;
  Range nothing_, one_;
  std::vector<Slice> slices_;
};

void emit(ProgramBuilder& program, UnitPass& pass) {
  if (pass.units().count() > 0) Chain(program, pass).emit();
}

std::int64_t bytes_sent(const LinearAttentionProblem& problem, const LinearAttentionOptions&, Pass pass) {
  const Units units(problem.layout);
  const Way way(units, pass == Pass::backward);
  std::int64_t hops = 0;
  for (std::int64_t place = 0; place < way.length(); ++place) hops += way.travels(place) ? 1 : 0;
  return hops * problem.heads * problem.state_width() * static_cast<std::int64_t>(size_of(accumulator_of(problem.dtype)));
}

}  // namespace

Strategy lasp_strategy() { return {"lasp", "a chain of states from unit to unit", 0, false, emit, bytes_sent}; }

// Four slices: of eight ranks' chain 11/4 state times are left of 8; each further slice saves less than it costs in messages.
Strategy all_scan_strategy() {
  return {"all_scan", "the same chain in slices by heads, which follow each other", 4, false, emit, bytes_sent};
}

}  // namespace periplus::strategy::linear
