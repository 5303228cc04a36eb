#include "parallel/plan/row_orders.h"

#include <numeric>
#include <utility>

namespace periplus::plan {
namespace {

/// Adds rows of an order, as one with those before them if they follow.
void append(std::vector<NamedRows>& all, const NamedRows& next) {
  NamedRows* const last = all.empty() ? nullptr : &all.back();
  const bool joins =
      last != nullptr && last->order == next.order && last->first + last->rows == next.first && last->at + last->rows == next.at;
  joins ? void(last->rows += next.rows) : all.push_back(next);
}

void append(std::vector<Segment>& all, std::int64_t at, const StridedRows& run) {
  if (!all.empty()) {
    Segment& last = all.back();
    const std::int64_t stride = last.length > 1 ? last.stride : run.stride;
    const bool alike = run.count == 1 || run.stride == stride;
    if (alike && last.local0 + last.length == at && last.global0 + last.length * stride == run.first) {
      last.length += run.count, last.stride = stride;
      return;
    }
  }
  all.push_back({0, at, run.first, run.count, run.stride});
}

}  // namespace

RowOrders::RowOrders(const SequenceLayout& layout) : layout_(layout) {
  for (int rank = 0; rank < layout.ranks(); ++rank) {
    const auto segments = layout.segments_of(rank);
    by_global_.insert(by_global_.end(), segments.begin(), segments.end());
  }
  if (std::ranges::any_of(by_global_, [](const Segment& s) { return s.length > 1 && s.stride != 1; })) by_global_.clear();
  std::ranges::sort(by_global_, {}, &Segment::global0);
}

bool RowOrders::same_rows(int order, std::int64_t first, int other_order, std::int64_t other_first, std::int64_t rows) const {
  if (order == other_order) return first == other_first;
  std::vector<StridedRows> runs, others;
  for_runs(order, first, rows, [&](std::int64_t, const StridedRows& run) { runs.push_back(run); });
  for_runs(other_order, other_first, rows, [&](std::int64_t, const StridedRows& run) { others.push_back(run); });
  const auto drop = [](std::vector<StridedRows>& from, std::size_t& at, std::int64_t count) {
    from[at].first += count * from[at].stride, from[at].count -= count;
    if (from[at].count == 0) ++at;
  };
  std::size_t x = 0, y = 0;
  std::int64_t same = 0;
  while (x < runs.size() && y < others.size()) {
    const std::int64_t both = std::min(runs[x].count, others[y].count);
    if (runs[x].first != others[y].first || (both > 1 && runs[x].stride != others[y].stride)) return false;
    drop(runs, x, both), drop(others, y, both);
    same += both;
  }
  return same == rows;
}

std::span<const NamedRows> RowOrders::moved(const std::vector<NamedRows>& rows, std::span<const RowMove> moves) {
  const RowMove* const first = known(moves);
  const auto entry = std::ranges::find_if(moved_, [&](const Moved& m) { return m.moves == first && m.before == rows; });
  if (entry != moved_.end()) return entry->after;
  return moved_.emplace_back(first, rows, move(rows, moves)).after;
}

const RowMove* RowOrders::known(std::span<const RowMove> moves) {
  auto [entry, is_new] = known_moves_.try_emplace(moves.data(), moves.data());
  if (!is_new) return entry->second;
  const auto alike = std::ranges::find_if(distinct_moves_, [&](std::span<const RowMove> other) { return equal(moves, other); });
  if (alike == distinct_moves_.end()) {
    distinct_moves_.push_back(moves);
  } else {
    entry->second = alike->data();
  }
  return entry->second;
}

std::vector<NamedRows> RowOrders::move(const std::vector<NamedRows>& rows, std::span<const RowMove> moves) {
  std::vector<RowMove> by_target = without_strides(moves);
  std::ranges::sort(by_target, {}, &RowMove::to);
  std::vector<NamedRows> of_ranks, part_of_ranks;
  std::vector<Segment> runs;
  for (const RowMove& move : by_target) {
    auto source = std::ranges::upper_bound(rows, move.from, {}, [](const NamedRows& r) { return r.at + r.rows; });
    for (; source != rows.end() && source->at < move.from + move.rows; ++source) {
      const std::int64_t begin = std::max<std::int64_t>(move.from, source->at),
                         end = std::min(move.from + move.rows, source->at + source->rows);
      const std::int64_t at = begin + move.to - move.from, first = source->first + begin - source->at;
      if (is_rank(source->order)) append(of_ranks, {at, end - begin, source->order, first});
      for_runs(source->order, first, end - begin, [&](std::int64_t row, const StridedRows& run) {
        append(runs, at + row - first, run);
        if (is_rank(source->order)) return;
        part_of_ranks.clear();
        append_rows_of_ranks(run, part_of_ranks);
        for (NamedRows part : part_of_ranks) {
          part.at += at + row - first;
          append(of_ranks, part);
        }
      });
    }
  }
  const auto count = [](std::int64_t sum, const NamedRows& part) { return sum + part.rows; };
  const std::int64_t total = std::accumulate(rows.begin(), rows.end(), std::int64_t{0}, count);
  const std::int64_t named = std::accumulate(of_ranks.begin(), of_ranks.end(), std::int64_t{0}, count);
  // The rows of ranks one after the other keep those names: the ranks will know them again.
  if (named == total && of_ranks.size() <= static_cast<std::size_t>(layout_.ranks())) return of_ranks;
  return {{0, total, order_of(std::move(runs)), 0}};
}

void RowOrders::append_rows_of_ranks(const StridedRows& run, std::vector<NamedRows>& to) const {
  const std::int64_t end = run.first + run.count;
  if (run.count > 1 && run.stride != 1) return;
  auto segment = std::ranges::upper_bound(by_global_, run.first, {}, [](const Segment& s) { return s.global0 + s.length; });
  for (std::int64_t row = run.first; segment != by_global_.end() && row < end; ++segment) {
    const std::int64_t rows = std::min(end, segment->global0 + segment->length) - row;
    append(to, {row - run.first, rows, segment->rank, segment->local0 + row - segment->global0});
    row += rows;
  }
}

int RowOrders::order_of(std::vector<Segment> runs) {
  const auto equal = [&](const std::vector<Segment>& other) {
    return std::ranges::equal(runs, other, [](const Segment& x, const Segment& y) {
      return x.global0 == y.global0 && x.length == y.length && x.stride == y.stride;
    });
  };
  const auto alike = std::ranges::find_if(made_, equal);
  const int order = layout_.ranks() + static_cast<int>(alike - made_.begin());
  if (alike == made_.end()) made_.push_back(std::move(runs));
  return order;
}

}  // namespace periplus::plan
