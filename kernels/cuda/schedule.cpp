#include "kernels/cuda/schedule.h"

#include <algorithm>
#include <numeric>

#include "kernels/band_tiles.h"

namespace periplus::kernels::cuda {
namespace {

struct Interval {
  std::int64_t begin, end;
};

Interval columns_of(const Band& band, RowAxis axis) {
  return axis == RowAxis::query ? Interval{band.k0, band.k1} : Interval{band.q0, band.q1};
}

Interval rows_of(const Band& band, RowAxis axis) { return columns_of(band, axis == RowAxis::query ? RowAxis::key : RowAxis::query); }

/// What the intervals hold, as disjoint ascending ones. Two that only touch become one if `touching`.
std::vector<Interval> joined(std::vector<Interval> all, bool touching) {
  std::ranges::sort(all, {}, &Interval::begin);
  std::vector<Interval> result;
  for (const Interval& next : all) {
    if (!result.empty() && (next.begin < result.back().end || (touching && next.begin == result.back().end))) {
      result.back().end = std::max(result.back().end, next.end);
    } else {
      result.push_back(next);
    }
  }
  return result;
}

/// The columns that some band reaches.
std::vector<Interval> reached(std::span<const Band> bands, RowAxis axis) {
  std::vector<Interval> all;
  for (const Band& band : bands) all.push_back(columns_of(band, axis));
  return joined(std::move(all), true);
}

/// Rows at which no band goes on but some begin or end, ascending.
std::vector<std::int64_t> borders_of(std::span<const Band> bands, RowAxis axis) {
  std::vector<Interval> all;
  for (const Band& given : bands) {
    const Interval rows = rows_of(tighten(given), axis);
    if (rows.begin < rows.end) all.push_back(rows);
  }
  std::vector<std::int64_t> borders;
  for (const Interval& rows : joined(std::move(all), false)) borders.insert(borders.end(), {rows.begin, rows.end});
  return borders;
}

/// Where row tiles begin, and the extent.
std::vector<std::int64_t> row_cuts(std::span<const Band> bands, RowAxis axis, std::int64_t extent, const ScheduleTiles& tiles) {
  constexpr std::int64_t kFewest = 16;
  const std::vector<std::int64_t> borders = tiles.cut_rows ? borders_of(bands, axis) : std::vector<std::int64_t>{};
  std::vector<std::int64_t> cuts = {0};
  while (cuts.back() < extent) {
    std::int64_t end = std::min(extent, cuts.back() + tiles.rows);
    const auto after = std::ranges::upper_bound(borders, end);
    if (after != borders.begin() && *(after - 1) >= cuts.back() + kFewest) end = *(after - 1);
    cuts.push_back(end);
  }
  return cuts;
}

MaskBand narrowed(const Band& band) {
  // Bands are tightened: all six are bounded by the extents of the views.
  const auto narrow = [](std::int64_t x) { return static_cast<std::int32_t>(x); };
  return {narrow(band.q0), narrow(band.q1), narrow(band.k0), narrow(band.k1), narrow(band.lo), narrow(band.hi)};
}

class Scheduler {
 public:
  Scheduler(std::span<const Band> bands, RowAxis axis, std::int64_t query_rows, std::int64_t key_rows, const ScheduleTiles& tiles)
      : axis_(axis),
        tiles_(tiles),
        row_extent_(axis == RowAxis::query ? query_rows : key_rows),
        column_extent_(axis == RowAxis::query ? key_rows : query_rows),
        cuts_(row_cuts(bands, axis, row_extent_, tiles)),
        by_row_(bands, axis == RowAxis::query ? BandTiles::Axis::query : BandTiles::Axis::key, cuts_) {}

  Schedule make() {
    for (std::int64_t tile = 0; tile < by_row_.tiles(); ++tile) add_row_tile(tile);
    std::vector<RowTile>& rows = result_.rows;
    if (tiles_.fixed_columns) {
      std::ranges::reverse(rows);
      std::ranges::stable_partition(rows, [](const RowTile& row) { return row.columns > 0; });
      number_turns();
    } else {
      order_by_document();
    }
    result_.reached_rows = static_cast<std::int32_t>(std::ranges::count_if(rows, [](const RowTile& row) { return row.columns > 0; }));
    return std::move(result_);
  }

 private:
  void add_row_tile(std::int64_t tile) {
    const std::span<const Band> bands = by_row_.of(tile);
    rows_ = {cuts_[static_cast<std::size_t>(tile)], cuts_[static_cast<std::size_t>(tile) + 1]};
    const auto first = static_cast<std::int32_t>(result_.columns.size());
    std::int64_t done = 0;  // fixed cuts: columns before here have their entry
    for (const Interval& run : reached(bands, axis_)) {
      for (std::int64_t begin = std::max(run.begin, done); begin < run.end;) {
        const std::int64_t start = tiles_.fixed_columns ? begin / tiles_.columns * tiles_.columns : begin;
        const std::int64_t end = tiles_.fixed_columns ? start + tiles_.columns : std::min(run.end, begin + tiles_.columns);
        add_column_tile(bands, {start, end});
        begin = done = end;
      }
    }
    const auto count = static_cast<std::int32_t>(result_.columns.size()) - first;
    result_.rows.push_back({static_cast<std::int32_t>(rows_.begin), static_cast<std::int32_t>(rows_.end - rows_.begin), first, count});
  }

  void add_column_tile(std::span<const Band> bands, Interval columns) {
    ColumnTile tile{static_cast<std::int32_t>(columns.begin),
                    static_cast<std::int32_t>(columns.end - columns.begin),
                    static_cast<std::int32_t>(result_.masks.size()),
                    0,
                    -1,
                    0};
    bool full = false;
    for (const Band& band : bands) {
      const Interval reach = columns_of(band, axis_);
      if (reach.end <= columns.begin || reach.begin >= columns.end) continue;
      full = full || covers(band, columns);
      result_.masks.push_back(narrowed(band));
      ++tile.masks;
    }
    if (full) {
      result_.masks.resize(static_cast<std::size_t>(tile.first_mask));
      tile.masks = 0;
    } else {
      tile.mask = result_.masks[static_cast<std::size_t>(tile.first_mask)];
    }
    result_.columns.push_back(tile);
  }

  /// Whole tiles only: what lies outside would otherwise count as allowed. Queries of no interest do no harm, as nothing is
  /// stored of them, unless they are columns.
  bool covers(const Band& band, Interval columns) const {
    const bool by_query = axis_ == RowAxis::query;
    const Interval q = by_query ? rows_ : columns, k = by_query ? columns : rows_;
    if (columns.end - columns.begin != tiles_.columns) return false;
    if (!by_query && rows_.end - rows_.begin != tiles_.rows) return false;
    return band.q0 <= q.begin && band.q1 >= q.end && band.k0 <= k.begin && band.k1 >= k.end && band.lo <= k.begin - (q.end - 1) &&
           band.hi >= k.end - 1 - q.begin;
  }

  /// Longest first, but what reads the same columns together: row tiles that read half of what the one before them does, or more, are
  /// a document, and documents come by their longest row tile.
  void order_by_document() {
    std::vector<RowTile>& rows = result_.rows;
    std::vector<std::ranges::subrange<std::vector<RowTile>::iterator>> documents;
    for (auto row = rows.begin(); row != rows.end(); ++row) {
      if (row == rows.begin() || !shares_half(*(row - 1), *row)) documents.emplace_back(row, row);
      documents.back() = {documents.back().begin(), row + 1};
    }
    for (const auto& document : documents) std::ranges::stable_sort(document, std::greater<>{}, &RowTile::columns);
    std::ranges::stable_sort(documents, std::greater<>{}, [](const auto& document) { return document.front().columns; });
    std::vector<RowTile> ordered;
    for (const auto& document : documents) ordered.insert(ordered.end(), document.begin(), document.end());
    rows = std::move(ordered);
  }

  /// Of the shorter one's columns.
  bool shares_half(const RowTile& before, const RowTile& row) const {
    const auto columns = [&](const RowTile& of) {
      return std::span(result_.columns).subspan(static_cast<std::size_t>(of.first), static_cast<std::size_t>(of.columns));
    };
    if (before.columns == 0 || row.columns == 0) return false;
    std::int64_t shared = 0, total[2] = {0, 0};
    const auto a = columns(before), b = columns(row);
    for (const ColumnTile& tile : a) total[0] += tile.count;
    for (const ColumnTile& tile : b) total[1] += tile.count;
    for (std::size_t i = 0, j = 0; i < a.size() && j < b.size();) {
      const std::int32_t end_a = a[i].begin + a[i].count, end_b = b[j].begin + b[j].count;
      shared += std::max(0, std::min(end_a, end_b) - std::max(a[i].begin, b[j].begin));
      end_a < end_b ? ++i : ++j;
    }
    return 2 * shared >= std::min(total[0], total[1]);
  }

  void number_turns() {
    std::vector<std::int32_t> turns(static_cast<std::size_t>((column_extent_ + tiles_.columns - 1) / tiles_.columns), 0);
    const auto turns_of = [&](const ColumnTile& tile) -> std::int32_t& {
      return turns[static_cast<std::size_t>(tile.begin / tiles_.columns)];
    };
    for (const RowTile& row : result_.rows) {
      for (std::int32_t i = row.first; i < row.first + row.columns; ++i) {
        ColumnTile& tile = result_.columns[static_cast<std::size_t>(i)];
        tile.turn = turns_of(tile)++;
      }
    }
    for (ColumnTile& tile : result_.columns) tile.turns = turns_of(tile);
    for (std::size_t tile = 0; tile < turns.size(); ++tile) {
      if (turns[tile] == 0) result_.unreached.push_back(static_cast<std::int32_t>(tile));
    }
  }

  RowAxis axis_;
  ScheduleTiles tiles_;
  std::int64_t row_extent_, column_extent_;
  std::vector<std::int64_t> cuts_;
  BandTiles by_row_;
  Interval rows_{};
  Schedule result_;
};

}  // namespace

Schedule make_schedule(std::span<const Band> bands, RowAxis axis, std::int64_t query_rows, std::int64_t key_rows,
                       const ScheduleTiles& tiles) {
  return Scheduler(bands, axis, query_rows, key_rows, tiles).make();
}

}  // namespace periplus::kernels::cuda
