#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/band.h"

/// What a persistent attention kernel does for a list of bands, worked out on the host as plain data: the tiles along one
/// axis ("rows": queries forward, keys backward), longest first, and for each the tiles along the other axis ("columns")
/// that some band reaches. Knows nothing of CUDA; tests read it on the CPU.
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
  /// Rank of this entry among those that reach the same fixed tile of the column axis: results added per column tile in this
  /// order repeat bit for bit. Waiting for one's turn cannot deadlock: earlier turns belong to rows of earlier waves, or to
  /// earlier steps of the same wave (to rows handed out earlier, without waves). -1 if columns are not cut at fixed places.
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
  std::vector<RowTile> rows;  ///< All of them, also those that no band reaches, in the order to hand them out.
  std::vector<ColumnTile> columns;
  std::vector<MaskBand> masks;
  std::vector<std::int32_t> unreached;  ///< Fixed column tiles (by number) that no band reaches.
  std::int64_t tile_pairs() const noexcept { return static_cast<std::int64_t>(columns.size()); }
};

struct ScheduleTiles {
  std::int64_t rows = 128, columns = 128;  ///< Largest extents.
  /// Cut columns at multiples of `columns` and number the turns; else they start where a run of allowed columns does, which
  /// gives fewer tiles when documents are short.
  bool fixed_columns = false;
  /// With fixed columns: how many row tiles of a head are certain to be computed at the same time. Such a wave may take its
  /// turns in any order, so rows are handed out longest first, and each starts at a column tile that leaves the others alone.
  /// 0: nothing is certain. Then turns follow the order in which rows are handed out, from the last to the first: with a
  /// causal mask the rows of a head then reach different column tiles at a time.
  std::int64_t wave_rows = 0;
};

/// Time and space are linear in the result. Source of the order: longest processing time first (Graham 1969).
Schedule make_schedule(std::span<const Band> bands, RowAxis axis, std::int64_t query_rows, std::int64_t key_rows,
                       const ScheduleTiles& tiles);

}  // namespace periplus::kernels::cuda
