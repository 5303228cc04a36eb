#include "parallel/plan/alike.h"

#include <algorithm>

namespace periplus::plan {

void Likeness::RowMap::clear() {
  from_start_ = rising_ = true;
  known_.assign({{0, 0}, kEnd, kEnd});
  last_ = 0;
}

bool Likeness::RowMap::take(const Row& begin, const Row& end) {
  from_start_ = from_start_ && begin == Row{0, 0} && (end.in_a == 0) == (end.in_b == 0);
  if (!rising_) return from_start_;
  // Nearly always the rows are those of before, or the next.
  const Row* const last = &known_[last_];
  if (last[0] == begin && last[1] == end) return true;
  if (last[1] == begin && last[2] == end) {
    ++last_;
    return true;
  }
  const bool begins = add(begin);
  const std::size_t place = last_;
  rising_ = begins && add(end);
  last_ = place;
  return from_start_ || rising_;
}

bool Likeness::RowMap::add(const Row& row) {
  // Rows mostly come one behind the other.
  auto next = known_.begin() + static_cast<std::ptrdiff_t>(last_) + 1;
  const bool in_turn = (next - 1)->in_a < row.in_a && row.in_a <= next->in_a;
  if (!in_turn) next = std::ranges::lower_bound(known_, row.in_a, {}, &Row::in_a);
  last_ = static_cast<std::size_t>(next - known_.begin());
  if (next->in_a == row.in_a) return next->in_b == row.in_b;
  const bool rises = (last_ == 0 || (next - 1)->in_b < row.in_b) && row.in_b < next->in_b;
  if (rises) known_.insert(next, row);
  return rises;
}

bool Likeness::take(const View& a, const View& b) {
  if (a.slot != b.slot) return false;
  if (!a.present() || is_input(a)) return true;
  return a.head0 == b.head0 && a.heads == b.heads && rows_of(a).take({a.row0, b.row0}, {a.row0 + a.rows, b.row0 + b.rows});
}

/// The exchange is an access as a whole: messages that go on from others are one with them, as in append_joined.
bool Likeness::take(std::span<const Message> a, std::span<const Message> b, Mode mode) {
  struct Run {
    const View* view;
    Row begin, end;
  };
  std::array<Run, 2> runs;  // latest first
  std::size_t count = 0;
  const auto finish = [&](const Run& run) { return rows_of(*run.view).take(run.begin, run.end); };
  const auto joins = [&](Run& run, const View& x, const Row& begin, const Row& end) {
    if (run.view->slot != x.slot) return false;
    const bool again = run.begin.in_a <= begin.in_a && end.in_a <= run.end.in_a && run.begin.in_b <= begin.in_b && end.in_b <= run.end.in_b;
    if (mode == Mode::read && again) return true;
    if (run.end != begin) return false;
    run.end = end;
    return true;
  };
  for (std::size_t i = 0; i < a.size(); ++i) {
    const View &x = a[i].view, &y = b[i].view;
    if (x.slot != y.slot || x.head0 != y.head0 || x.heads != y.heads) return false;
    if (is_input(x)) continue;
    const Row begin{x.row0, y.row0}, end{x.row0 + x.rows, y.row0 + y.rows};
    if ((count > 0 && joins(runs[0], x, begin, end)) || (count > 1 && joins(runs[1], x, begin, end))) continue;
    if (count == 2 && !finish(runs[1])) return false;
    runs[1] = runs[0], runs[0] = {&x, begin, end};
    count = std::min(count + 1, runs.size());
  }
  return std::ranges::all_of(std::span(runs).first(count), finish);
}

bool Likeness::operator()(const Program& a, const Program& b, bool waits) {
  const auto sizes = [](const Program& p) { return std::array{p.slots.size(), p.steps.size(), p.accesses.size()}; };
  if (sizes(a) != sizes(b) || (waits && a.after != b.after)) return false;
  if (!std::ranges::equal(a.slots, b.slots, {}, &Slot::role, &Slot::role)) return false;
  if (rows_.size() < a.slots.size()) rows_.resize(a.slots.size());
  is_input_.clear();
  for (std::size_t i = 0; i < a.slots.size(); ++i) {
    rows_[i].clear();
    is_input_.push_back(a.slots[i].role == Role::input);
  }
  const auto like_access = [this](const Access& x, const Access& y) { return x.mode == y.mode && take(x.view, y.view); };
  return std::ranges::equal(a.steps, b.steps, [&](const Step& x, const Step& y) {
    if (queue_of(x) != queue_of(y) || (waits && x.after != y.after)) return false;
    if (x.op != Op::exchange) return std::ranges::equal(a.accesses_of(x), b.accesses_of(y), like_access);
    return x.sends.count == y.sends.count && x.receives.count == y.receives.count && take(a.sends_of(x), b.sends_of(y), Mode::read) &&
           take(a.receives_of(x), b.receives_of(y), Mode::write);
  });
}

}  // namespace periplus::plan
