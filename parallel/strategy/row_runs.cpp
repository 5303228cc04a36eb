#include "parallel/strategy/row_runs.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace periplus::strategy {
namespace {

/// Takes in rows; runs that are at most `gap` rows from each other become one.
void join(RowRuns& runs, RowRange rows, std::int64_t gap) {
  const auto first = std::ranges::lower_bound(runs, rows.begin - gap, {}, &RowRange::end);
  auto last = first;
  for (; last != runs.end() && last->begin <= rows.end + gap; ++last) rows = hull(rows, *last);
  if (first == last) {
    runs.insert(first, rows);
  } else {
    *first = rows;
    runs.erase(first + 1, last);
  }
}

}  // namespace

std::int64_t rows_of(std::span<const RowRange> runs) {
  return std::accumulate(runs.begin(), runs.end(), std::int64_t{0}, [](std::int64_t sum, const RowRange& run) { return sum + run.rows(); });
}

RowRuns rows_needed(std::span<const Band> bands) {
  constexpr std::size_t kMostRuns = 8;
  constexpr std::int64_t kShortGap = 16;
  RowRuns runs;
  for (const Band& band : bands) join(runs, {band.k0, band.k1}, kShortGap);
  for (std::int64_t gap = 2 * kShortGap; runs.size() > kMostRuns; gap *= 2) {
    RowRuns fewer;
    for (const RowRange& run : runs) join(fewer, run, gap);
    runs = std::move(fewer);
  }
  return runs;
}

void append_compacted(std::span<const Band> bands, std::span<const RowRange> runs, std::int64_t first, std::vector<Band>& to) {
  for (const Band& band : bands) {
    std::int64_t at = first;
    for (const RowRange& run : runs) {
      Band part = band;
      part.k0 = std::max(band.k0, run.begin), part.k1 = std::min(band.k1, run.end);
      if (part.k0 < part.k1) to.push_back(moved(part, 0, at - run.begin));
      at += run.rows();
    }
  }
}

}  // namespace periplus::strategy
