#include "parallel/layout.h"

#include <algorithm>
#include <array>
#include <bit>
#include <numeric>
#include <string>

#include <fmt/format.h>

#include "runtime/error.h"
#include "runtime/file.h"

namespace periplus {
namespace {

struct KindName {
  LayoutKind kind;
  std::string_view name;
};
constexpr std::array<KindName, 6> kKinds{{{LayoutKind::contiguous, "contiguous"},
                                          {LayoutKind::zigzag, "zigzag"},
                                          {LayoutKind::striped, "striped"},
                                          {LayoutKind::document_zigzag, "document_zigzag"},
                                          {LayoutKind::balanced, "balanced"},
                                          {LayoutKind::custom, "custom"}}};

void check_arguments(int ranks, std::span<const std::int64_t> cu_seqlens) {
  if (ranks < 1) throw InvalidArgument(fmt::format("sequence_layout: {} ranks; at least 1 is needed", ranks));
  if (cu_seqlens.empty() || cu_seqlens.front() != 0) {
    throw InvalidArgument("sequence_layout: cu_seqlens must start with 0 and end with the number of tokens");
  }
  for (std::size_t i = 1; i < cu_seqlens.size(); ++i) {
    if (cu_seqlens[i] < cu_seqlens[i - 1]) {
      throw InvalidArgument(
          fmt::format("sequence_layout: cu_seqlens must not fall, but entry {} is {} after {}", i, cu_seqlens[i], cu_seqlens[i - 1]));
    }
  }
  if (cu_seqlens.back() > kMostTokens)
    throw InvalidArgument(fmt::format("sequence_layout: {} tokens; at most {} can be dealt out", cu_seqlens.back(), kMostTokens));
}

/// Collects segments rank by rank, cutting them at document borders.
class SegmentWriter {
 public:
  SegmentWriter(int ranks, std::span<const std::int64_t> cu) : cu_(cu), next_local_(static_cast<std::size_t>(ranks), 0) {}

  /// Appends `length` tokens from global row `global0` on, `stride` apart, to `rank`.
  void append(int rank, std::int64_t global0, std::int64_t length, std::int64_t stride = 1) {
    std::int64_t& local = next_local_[static_cast<std::size_t>(rank)];
    while (length > 0) {
      const auto border = std::upper_bound(cu_.begin(), cu_.end(), global0);
      const std::int64_t here = std::min(length, (*border - global0 + stride - 1) / stride);
      segments.push_back({rank, local, global0, here, stride, static_cast<int>(border - cu_.begin()) - 1});
      local += here;
      global0 += here * stride;
      length -= here;
    }
  }
  std::vector<Segment> segments;

 private:
  std::span<const std::int64_t> cu_;
  std::vector<std::int64_t> next_local_;
};

std::vector<Segment> make_segments(LayoutKind kind, int ranks, std::span<const std::int64_t> cu) {
  SegmentWriter to(ranks, cu);
  const std::int64_t tokens = cu.back();
  const std::int64_t chunks = 2 * static_cast<std::int64_t>(ranks);
  const auto border = [](std::int64_t x, std::int64_t length, std::int64_t parts) { return x * length / parts; };
  const auto zigzag_half = [&](int half, int r) { return half == 0 ? std::int64_t{r} : chunks - 1 - r; };
  for (int r = 0; r < ranks; ++r) {
    switch (kind) {
      case LayoutKind::contiguous:
        to.append(r, border(r, tokens, ranks), border(r + 1, tokens, ranks) - border(r, tokens, ranks));
        break;
      case LayoutKind::striped:
        to.append(r, r, (tokens - r + ranks - 1) / ranks, ranks);
        break;
      case LayoutKind::zigzag:
        for (int half = 0; half < 2; ++half) {
          const std::int64_t x = zigzag_half(half, r);
          to.append(r, border(x, tokens, chunks), border(x + 1, tokens, chunks) - border(x, tokens, chunks));
        }
        break;
      case LayoutKind::document_zigzag:
        for (int half = 0; half < 2; ++half) {
          for (std::size_t d = 0; d + 1 < cu.size(); ++d) {
            // Borders round by a phase that differs between documents; else every one-token document would go to rank 0.
            const std::int64_t length = cu[d + 1] - cu[d], phase = cu[d] % chunks, x = zigzag_half(half, r);
            const std::int64_t begin = (x * length + phase) / chunks, end = ((x + 1) * length + phase) / chunks;
            to.append(r, cu[d] + begin, end - begin);
          }
        }
        break;
      case LayoutKind::balanced:
        throw InvalidArgument("sequence_layout: the balanced layout depends on the mask; use make_layout");
      case LayoutKind::custom:
        throw InvalidArgument("sequence_layout: a custom layout is made from segments; use from_segments");
    }
  }
  return std::move(to.segments);
}

void check_locals(std::span<const Segment> segments, int ranks) {
  std::vector<std::int64_t> next(static_cast<std::size_t>(ranks), 0);
  for (const Segment& s : segments) {
    std::int64_t& expected = next[static_cast<std::size_t>(s.rank)];
    if (s.local0 != expected) {
      throw InvalidArgument(
          fmt::format("sequence_layout: local rows of rank {} must follow each other, but a segment starts at {} where {} is next", s.rank,
                      s.local0, expected));
    }
    expected += s.length;
  }
}

void check_each_row_once(std::span<const Segment> segments, std::int64_t tokens) {
  std::vector<bool> seen(static_cast<std::size_t>(tokens), false);
  std::int64_t count = 0;
  for (const Segment& s : segments) {
    for (std::int64_t t = 0; t < s.length; ++t, ++count) {
      const auto row = static_cast<std::size_t>(s.global0 + t * s.stride);
      if (seen[row]) throw InvalidArgument(fmt::format("sequence_layout: global row {} stands in two segments", row));
      seen[row] = true;
    }
  }
  if (count != tokens) throw InvalidArgument(fmt::format("sequence_layout: segments hold {} of {} rows", count, tokens));
}

}  // namespace

std::string_view to_string(LayoutKind kind) noexcept {
  for (const KindName& entry : kKinds) {
    if (entry.kind == kind) return entry.name;
  }
  return "?";
}

LayoutKind layout_kind_from_string(std::string_view name) {
  for (const KindName& entry : kKinds) {
    if (entry.name == name && entry.kind != LayoutKind::custom) return entry.kind;
  }
  throw InvalidArgument(fmt::format("layout '{}' is not known; use contiguous, zigzag, striped, document_zigzag or balanced", name));
}

SequenceLayout SequenceLayout::make(LayoutKind kind, int ranks, std::span<const std::int64_t> cu_seqlens) {
  check_arguments(ranks, cu_seqlens);
  SequenceLayout layout;
  layout.kind_ = kind;
  layout.ranks_ = ranks;
  layout.cu_seqlens_.assign(cu_seqlens.begin(), cu_seqlens.end());
  layout.by_local_ = make_segments(kind, ranks, cu_seqlens);
  layout.finalise();
  return layout;
}

SequenceLayout SequenceLayout::from_segments(int ranks, std::span<const std::int64_t> cu_seqlens, std::vector<Segment> segments) {
  check_arguments(ranks, cu_seqlens);
  for (const Segment& s : segments) {
    const std::int64_t tokens = cu_seqlens.back();
    // Divided, not multiplied: length times stride may overflow.
    const bool fits = s.length >= 0 && s.stride >= 1 && s.global0 >= 0 &&
                      (s.length == 0 || (s.global0 < tokens && s.length - 1 <= (tokens - 1 - s.global0) / s.stride));
    if (s.rank < 0 || s.rank >= ranks || !fits) {
      throw InvalidArgument(
          fmt::format("sequence_layout: segment (rank {}, global0 {}, length {}, stride {}) does not fit {} ranks and {} tokens", s.rank,
                      s.global0, s.length, s.stride, ranks, cu_seqlens.back()));
    }
  }
  std::stable_sort(segments.begin(), segments.end(),
                   [](const Segment& a, const Segment& b) { return std::pair(a.rank, a.local0) < std::pair(b.rank, b.local0); });
  check_locals(segments, ranks);
  check_each_row_once(segments, cu_seqlens.back());
  SegmentWriter to(ranks, cu_seqlens);
  for (const Segment& s : segments) to.append(s.rank, s.global0, s.length, s.stride);
  SequenceLayout layout;
  layout.kind_ = LayoutKind::custom;
  layout.ranks_ = ranks;
  layout.cu_seqlens_.assign(cu_seqlens.begin(), cu_seqlens.end());
  layout.by_local_ = std::move(to.segments);
  layout.finalise();
  return layout;
}

SequenceLayout SequenceLayout::balanced(int ranks, std::span<const std::int64_t> cu_seqlens, std::vector<Segment> segments) {
  SequenceLayout layout = from_segments(ranks, cu_seqlens, std::move(segments));
  layout.kind_ = LayoutKind::balanced;
  return layout;
}

void SequenceLayout::finalise() {
  rows_.assign(static_cast<std::size_t>(ranks_), 0);
  first_.assign(static_cast<std::size_t>(ranks_) + 1, 0);
  for (const Segment& s : by_local_) {
    rows_[static_cast<std::size_t>(s.rank)] += s.length;
    ++first_[static_cast<std::size_t>(s.rank) + 1];
  }
  for (std::size_t r = 1; r < first_.size(); ++r) first_[r] += first_[r - 1];
  by_global_ = by_local_;
  for (std::size_t r = 0; r + 1 < first_.size(); ++r) {
    std::sort(by_global_.begin() + static_cast<std::ptrdiff_t>(first_[r]), by_global_.begin() + static_cast<std::ptrdiff_t>(first_[r + 1]),
              [](const Segment& a, const Segment& b) { return a.global0 < b.global0; });
  }
  std::vector<std::int64_t> words{ranks_};
  words.insert(words.end(), cu_seqlens_.begin(), cu_seqlens_.end());
  for (const Segment& s : by_local_) words.insert(words.end(), {s.rank, s.global0, s.length, s.stride});
  digest_ = hash64({reinterpret_cast<const char*>(words.data()), words.size() * sizeof(words[0])});
}

std::size_t SequenceLayout::index_of(int rank) const {
  if (rank < 0 || rank >= ranks_) throw InvalidArgument(fmt::format("sequence_layout: rank {} is not one of the {} ranks", rank, ranks_));
  return static_cast<std::size_t>(rank);
}

std::span<const Segment> SequenceLayout::segments_of(int rank) const {
  const std::size_t r = index_of(rank);
  return std::span(by_local_).subspan(first_[r], first_[r + 1] - first_[r]);
}

std::span<const Segment> SequenceLayout::segments_by_global(int rank) const {
  const std::size_t r = index_of(rank);
  return std::span(by_global_).subspan(first_[r], first_[r + 1] - first_[r]);
}

std::vector<std::int64_t> SequenceLayout::global_rows(int rank) const {
  std::vector<std::int64_t> rows;
  rows.reserve(static_cast<std::size_t>(rows_of(rank)));
  for (const Segment& s : segments_of(rank)) {
    for (std::int64_t t = 0; t < s.length; ++t) rows.push_back(s.global0 + t * s.stride);
  }
  return rows;
}

std::vector<std::int64_t> SequenceLayout::positions(int rank) const {
  std::vector<std::int64_t> positions;
  positions.reserve(static_cast<std::size_t>(rows_of(rank)));
  for (const Segment& s : segments_of(rank)) {
    const std::int64_t start = cu_seqlens_[static_cast<std::size_t>(s.document)];
    for (std::int64_t t = 0; t < s.length; ++t) positions.push_back(s.global0 + t * s.stride - start);
  }
  return positions;
}

namespace {

/// Appends rows, or lengthens the last ones if these go on from there.
void append_or_join(std::vector<Segment>& all, const Segment& next) {
  Segment* const last = all.empty() ? nullptr : &all.back();
  const bool joins = last != nullptr && last->rank == next.rank && last->document == next.document && last->stride == 1 &&
                     next.stride == 1 && last->global0 + last->length == next.global0;
  joins ? void(last->length += next.length) : all.push_back(next);
}
void append_or_join(std::vector<GroupedLayout::Part>& all, const GroupedLayout::Part& next) {
  GroupedLayout::Part* const last = all.empty() ? nullptr : &all.back();
  const bool joins =
      last != nullptr && last->member == next.member && last->from + last->rows == next.from && last->to + last->rows == next.to;
  joins ? void(last->rows += next.rows) : all.push_back(next);
}
/// Moves from rows that follow each other. A single row goes on with any stride.
void append_or_join(std::vector<RowMove>& all, const RowMove& next) {
  RowMove* const last = all.empty() ? nullptr : &all.back();
  const std::int64_t stride = last == nullptr ? 0 : last->rows > 1 ? last->to_stride : next.rows > 1 ? next.to_stride : next.to - last->to;
  const bool joins = stride >= 1 && last->from + last->rows == next.from && last->to + last->rows * stride == next.to &&
                     (next.rows == 1 || next.to_stride == stride);
  if (!joins) return all.push_back(next);
  last->rows += next.rows, last->to_stride = static_cast<std::int32_t>(stride);
}

/// A segment of a group.
struct Place {
  std::int64_t global0;
  const Segment* segment;
};

/// Places by rising global row. Only those of one document need comparing: documents follow each other.
std::vector<Place> in_sequence(const SequenceLayout& layout, std::span<const Place> places) {
  std::vector<std::size_t> ends(layout.cu_seqlens().size(), 0);
  for (const Place& place : places) ++ends[static_cast<std::size_t>(place.segment->document) + 1];
  std::partial_sum(ends.begin(), ends.end(), ends.begin());
  std::vector<Place> sorted(places.size());
  for (const Place& place : places) sorted[ends[static_cast<std::size_t>(place.segment->document)]++] = place;
  for (auto begin = sorted.begin(); const std::size_t end : ends) {
    std::ranges::sort(begin, sorted.begin() + static_cast<std::ptrdiff_t>(end), {}, &Place::global0);
    begin = sorted.begin() + static_cast<std::ptrdiff_t>(end);
  }
  return sorted;
}

/// How many places from the first on, by rising global0, take turns row by row, as stripes of a document do: row t of the i-th
/// of n is row i + t * n of them all. 1 if the first is for itself.
std::size_t taking_turns(std::span<const Place> places) {
  const Segment& first = *places.front().segment;
  std::size_t count = 1;
  for (; count < places.size(); ++count) {
    const Segment &before = *places[count - 1].segment, &next = *places[count].segment;
    const bool in_turn = next.document == first.document && next.stride == first.stride && next.global0 < first.global0 + first.stride;
    if (!in_turn || next.length > before.length || next.length + 1 < first.length) break;
  }
  return count;
}

/// Appends the rows of places that take turns as rows of `group` from `row` on. Returns the row after them.
std::int64_t append_turns(std::span<const Place> turns, int group, std::int64_t row, std::vector<Segment>& all) {
  const Segment& first = *turns.front().segment;
  const auto append = [&](std::int64_t global0, std::int64_t length) {
    append_or_join(all, Segment{group, row, global0, length, 1, first.document});
    row += length;
  };
  if (static_cast<std::int64_t>(turns.size()) == first.stride) {  // they leave no gap
    std::int64_t rows = 0;
    for (const Place& place : turns) rows += place.segment->length;
    append(first.global0, rows);
    return row;
  }
  for (std::int64_t round = 0; round < first.length; ++round) {
    for (const Place& place : turns) {
      if (round < place.segment->length) append(place.global0 + round * first.stride, 1);
    }
  }
  return row;
}

}  // namespace

GroupedLayout::GroupedLayout(const SequenceLayout& from, std::span<const std::vector<int>> groups) {
  constexpr std::size_t kFewSegments = 4;  // each is a message to every other member
  const bool trades = std::ranges::any_of(groups, [](const std::vector<int>& group) { return group.size() > 1; });
  bool in_place = trades;
  for (int rank = 0; rank < from.ranks(); ++rank) in_place = in_place && from.segments_of(rank).size() <= kFewSegments;
  layout.kind_ = LayoutKind::custom;
  layout.ranks_ = static_cast<int>(groups.size());
  layout.cu_seqlens_ = from.cu_seqlens_;
  // Stripes lie between each other's rows, so that none would join in sequence.
  const bool striped = std::ranges::any_of(from.by_local_, [](const Segment& segment) { return segment.stride != 1; });
  Order order = in_place ? Order::in_place : trades && !striped ? Order::sequence : Order::members;
  lay_out(from, groups, order);
  // Segments that hardly join are not worth the moves.
  if (order == Order::sequence && layout.by_local_.size() * 2 > from.by_local_.size()) lay_out(from, groups, order = Order::members);
  if (const std::int64_t pairs = pairs_of_segments(); trades && pairs > from.tokens()) {
    lay_out(from, groups, Order::turns);
    if (pairs_of_segments() + from.tokens() >= pairs) lay_out(from, groups, order);
  }
  layout.finalise();
}

std::int64_t GroupedLayout::pairs_of_segments() const {
  std::vector<std::int64_t> of_document(layout.cu_seqlens_.size(), 0);
  std::int64_t pairs = 0;
  for (std::size_t i = 0; i < layout.by_local_.size(); ++i) {
    if (i > 0 && layout.by_local_[i].rank != layout.by_local_[i - 1].rank) std::ranges::fill(of_document, 0);
    // One more segment makes n^2 to (n + 1)^2.
    pairs += 2 * of_document[static_cast<std::size_t>(layout.by_local_[i].document)]++ + 1;
  }
  return pairs;
}

void GroupedLayout::lay_out(const SequenceLayout& from, std::span<const std::vector<int>> groups, Order order) {
  struct Target {
    std::int64_t row, stride;
  };
  parts.assign(groups.size(), {});
  moves.assign(groups.size(), {});
  layout.by_local_.clear();
  std::vector<Target> targets(from.by_local_.size());  // rows of each segment in its group
  const auto target_of = [&](const Segment& segment) -> Target& {
    return targets[static_cast<std::size_t>(&segment - from.by_local_.data())];
  };
  const bool places_rows = order == Order::sequence || order == Order::turns;
  std::vector<Place> places;
  for (std::size_t group = 0; group < groups.size(); ++group) {
    places.clear();
    for (const int rank : groups[group]) {
      for (const Segment& segment : from.segments_of(rank)) places.push_back({segment.global0, &segment});
    }
    if (order != Order::members) places = in_sequence(from, places);
    std::int64_t row = 0;
    for (std::span<const Place> rest(places); !rest.empty();) {
      const std::span<const Place> turns = rest.first(order == Order::turns ? taking_turns(rest) : 1);
      for (std::size_t i = 0; i < turns.size(); ++i)
        target_of(*turns[i].segment) = {row + static_cast<std::int64_t>(i), static_cast<std::int64_t>(turns.size())};
      rest = rest.subspan(turns.size());
      if (turns.size() > 1) {
        row = append_turns(turns, static_cast<int>(group), row, layout.by_local_);
        continue;
      }
      Segment segment = *turns.front().segment;
      segment.rank = static_cast<int>(group), segment.local0 = row;
      append_or_join(layout.by_local_, segment);
      row += segment.length;
    }
    std::int64_t arrived = 0;
    if (places_rows) moves[group].reserve(places.size());
    for (std::size_t member = 0; member < groups[group].size(); ++member) {
      for (const Segment& segment : from.segments_of(groups[group][member])) {
        const Target& to = target_of(segment);
        append_or_join(parts[group],
                       Part{static_cast<int>(member), segment.local0, order == Order::in_place ? to.row : arrived, segment.length});
        if (places_rows) append_or_join(moves[group], row_move(arrived, to.row, segment.length, to.stride));
        arrived += segment.length;
      }
    }
    if (moves[group].size() == 1) moves[group].clear();  // one move of all rows, to where they are
  }
}

}  // namespace periplus
