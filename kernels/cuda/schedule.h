#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/band.h"

/// What a persistent attention kernel does for a list of bands, worked out on the host as plain data: the tiles along one
/// axis ("rows": queries forward, keys backward), one document after the other and the longest first, and for each the tiles along
/// the other axis ("columns") that some band reaches. Knows nothing of CUDA; tests read it on the CPU.
namespace periplus::kernels::cuda {

enum class RowAxis { query, key };

struct MaskBand {
  std::int32_t q0, q1, k0, k1, lo, hi;
};

/// Columns [begin, begin + count) of the other axis. Every pair with the row tile is allowed if `masks` is 0; else a pair is
/// allowed if one of the bands masks[first_mask .. first_mask + masks) allows it.
struct alignas(16) ColumnTile {
  std::int32_t begin, count;
  std::int32_t first_mask, masks;
  /// Rank of this entry among those that reach the same fixed tile of the column axis, in the order in which row tiles are
  /// handed out: results added per column tile in this order repeat bit for bit, and waiting for one's turn cannot deadlock,
  /// since earlier turns belong to row tiles handed out earlier. -1 if columns are not cut at fixed places.
  std::int32_t turn;
  std::int32_t turns = 0;  ///< How many entries reach that column tile.
  MaskBand mask = {};      ///< The first of the masks once more: kernels seldom need another, and would wait for it.
};

/// Rows [begin, begin + count); columns[first .. first + columns).
struct RowTile {
  std::int32_t begin, count;
  std::int32_t first, columns;
};

struct Schedule {
  std::vector<RowTile> rows;  ///< In the order to hand them out; those that no band reaches come last.
  std::int32_t reached_rows = 0;
  std::vector<ColumnTile> columns;
  std::vector<MaskBand> masks;
  std::vector<std::int32_t> unreached;  ///< Fixed column tiles (by number) that no band reaches.
};

struct ScheduleTiles {
  std::int64_t rows = 128, columns = 128;  ///< Largest extents.
  /// Cut columns at multiples of `columns` and number the turns; else they start where a run of allowed columns does, which
  /// gives fewer tiles when documents are short. Rows are then handed out from the last to the first instead of by document and
  /// longest first: with a causal mask all row tiles of a head then reach different column tiles at a time, also when a new head
  /// starts while the last one ends.
  bool fixed_columns = false;
  /// Let row tiles end where documents do (bands begin or end, and none goes on), though not after fewer than 16 rows: then most
  /// belong to one document, and fewer tiles need masks. Else they begin at multiples of `rows`.
  bool cut_rows = false;
};

/// Time and space are linear in the result. Source of the order: longest processing time first (Graham 1969), of documents rather than
/// of row tiles, so that a document's keys are read while the second-level cache has them.
Schedule make_schedule(std::span<const Band> bands, RowAxis axis, std::int64_t query_rows, std::int64_t key_rows,
                       const ScheduleTiles& tiles);

}  // namespace periplus::kernels::cuda
