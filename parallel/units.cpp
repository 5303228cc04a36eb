#include "parallel/units.h"

#include <algorithm>

#include "parallel/mask.h"

namespace periplus {
namespace {

/// The document that a token is in: [begin, end) of the packed sequence. Empty ones hold no token.
RowRange document_at(std::span<const std::int64_t> cu_seqlens, std::int64_t token) {
  const auto border = std::ranges::upper_bound(cu_seqlens, token);
  return {*(border - 1), *border};
}

/// Appends tokens of a rank, joined to those before them where they follow in both orders.
void append(std::vector<Unit>& units, const Unit& more) {
  Unit* const last = units.empty() || units.back().rank != more.rank ? nullptr : &units.back();
  if (last != nullptr && last->row0 + last->rows == more.row0 && last->global0 + last->rows == more.global0) {
    last->rows += more.rows;
  } else {
    units.push_back(more);
  }
}

}  // namespace

Units::Units(const SequenceLayout& layout)
    : of_rank_(static_cast<std::size_t>(layout.ranks())), cu_seqlens_(layout.cu_seqlens().begin(), layout.cu_seqlens().end()) {
  for (int rank = 0; rank < layout.ranks(); ++rank) {
    for (const Segment& s : layout.segments_of(rank)) {
      const std::int64_t rows = s.stride == 1 ? s.length : 1;
      for (std::int64_t t = 0; t < s.length; t += rows) append(units_, {rank, s.local0 + t, rows, s.global0 + t * s.stride});
    }
  }
  std::ranges::sort(units_, {}, &Unit::global0);
  for (std::int64_t u = 0; u < count(); ++u) {
    const Unit& unit = units_[static_cast<std::size_t>(u)];
    std::vector<std::int64_t>& own = of_rank_[static_cast<std::size_t>(unit.rank)];
    const std::int64_t last = unit.global0 + unit.rows - 1;
    incoming_.push_back({std::ssize(own), holding(document_at(cu_seqlens_, unit.global0).begin), u});
    outgoing_.push_back({std::ssize(own), u + 1, holding(document_at(cu_seqlens_, last).end - 1) + 1});
    own.push_back(u);
  }
}

std::span<const std::int64_t> Units::of_rank(int rank) const { return of_rank_.at(static_cast<std::size_t>(rank)); }

std::int64_t Units::most_per_rank() const noexcept {
  std::size_t most = 0;
  for (const auto& own : of_rank_) most = std::max(most, own.size());
  return static_cast<std::int64_t>(most);
}

bool Units::any_goes_on() const noexcept {
  return std::ranges::any_of(incoming_, [](const kernels::UnitFold& fold) { return fold.begin < fold.end; });
}

std::vector<kernels::UnitRun> Units::runs_of(int rank) const {
  std::vector<kernels::UnitRun> runs;
  const auto own = of_rank(rank);
  for (std::size_t i = 0; i < own.size(); ++i) {
    const Unit& unit = units_[static_cast<std::size_t>(own[i])];
    const std::int64_t unit_end = unit.global0 + unit.rows;
    for (std::int64_t at = unit.global0; at < unit_end;) {
      const RowRange document = document_at(cu_seqlens_, at);
      const std::int64_t end = std::min(unit_end, document.end);
      runs.push_back({unit.row0 + at - unit.global0, end - at, static_cast<std::int64_t>(i), document.begin < at, end == unit_end});
      at = end;
    }
  }
  std::ranges::sort(runs, {}, &kernels::UnitRun::row0);
  return runs;
}

std::int64_t Units::holding(std::int64_t token) const {
  return std::ranges::upper_bound(units_, token, {}, &Unit::global0) - units_.begin() - 1;
}

std::vector<kernels::UnitFold> Units::of_rank(int rank, std::span<const kernels::UnitFold> folds) const {
  std::vector<kernels::UnitFold> own;
  own.reserve(of_rank(rank).size());
  for (const std::int64_t unit : of_rank(rank)) own.push_back(folds[static_cast<std::size_t>(unit)]);
  return own;
}

}  // namespace periplus
