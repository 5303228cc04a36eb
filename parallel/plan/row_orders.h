#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <span>
#include <unordered_map>
#include <vector>

#include "parallel/layout.h"
#include "parallel/plan/fingerprint.h"

namespace periplus::plan {

/// Rows [first, first + rows) of an order of rows, in rows [at, at + rows) of a slot or view.
struct NamedRows {
  std::int64_t at, rows;
  int order;
  std::int64_t first;
  friend bool operator==(const NamedRows&, const NamedRows&) = default;
};

/// Names for rows of the packed sequence: a row is number i of an order. Orders 0..ranks-1 are the rows of the ranks as
/// the layout has them. A copy that moves rows makes a new order where their names would fall to pieces: one for each
/// sequence of rows, so equal names mean equal rows. Rows of several orders are compared as global rows.
class RowOrders {
 public:
  explicit RowOrders(const SequenceLayout& layout);
  RowOrders(const RowOrders&) = delete;
  RowOrders& operator=(const RowOrders&) = delete;

  bool is_rank(int order) const { return order < layout_.ranks(); }
  /// Runs of evenly spaced global rows of [first, first + rows) of an order: fn(first row of the run, StridedRows).
  template <class Fn>
  void for_runs(int order, std::int64_t first, std::int64_t rows, Fn&& fn) const {
    const auto segments = segments_of(order);
    auto segment = std::upper_bound(segments.begin(), segments.end(), first,
                                    [](std::int64_t row, const Segment& s) { return row < s.local0 + s.length; });
    for (; segment != segments.end() && segment->local0 < first + rows; ++segment) {
      const std::int64_t begin = std::max(first, segment->local0), end = std::min(first + rows, segment->local0 + segment->length);
      if (begin < end) fn(begin, StridedRows{segment->global0 + (begin - segment->local0) * segment->stride, end - begin, segment->stride});
    }
  }
  bool same_rows(int order, std::int64_t first, int other_order, std::int64_t other_first, std::int64_t rows) const;

  /// Where the moves bring rows that follow each other from 0 on, as those of the result do. Each row moves once. The
  /// moves have to stay where they are.
  std::span<const NamedRows> moved(const std::vector<NamedRows>& rows, std::span<const RowMove> moves);

 private:
  struct Moved {
    const RowMove* moves;
    std::vector<NamedRows> before, after;
  };
  std::span<const Segment> segments_of(int order) const {
    return is_rank(order) ? layout_.segments_of(order) : std::span<const Segment>(made_[static_cast<std::size_t>(order - layout_.ranks())]);
  }
  /// The first moves that were equal to these.
  const RowMove* known(std::span<const RowMove> moves);
  std::vector<NamedRows> move(const std::vector<NamedRows>& rows, std::span<const RowMove> moves);
  void append_rows_of_ranks(const StridedRows& run, std::vector<NamedRows>& to) const;
  int order_of(std::vector<Segment> runs);

  const SequenceLayout& layout_;
  std::vector<Segment> by_global_;         ///< Of all ranks; empty if some are strided, for then rows have no names by rank.
  std::deque<std::vector<Segment>> made_;  ///< Orders from `ranks` on.
  std::deque<Moved> moved_;                ///< Ranks of a group move alike, and all tensors of a rank.
  std::vector<std::span<const RowMove>> distinct_moves_;
  std::unordered_map<const RowMove*, const RowMove*> known_moves_;
};

}  // namespace periplus::plan
