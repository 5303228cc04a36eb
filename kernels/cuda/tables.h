#pragma once

#include <cstdint>
#include <span>

#include "kernels/cuda/schedule.h"
#include "runtime/device.h"

namespace periplus::kernels::cuda {

/// A schedule in device memory, with the counters of a kernel that hands out its row tiles.
struct ResidentSchedule {
  const RowTile* rows;
  const ColumnTile* columns;
  const MaskBand* masks;
  const std::int32_t* unreached;
  std::int32_t row_tiles, reached_rows, unreached_tiles, column_tiles;  ///< column_tiles: fixed places along the column axis.
  std::int32_t longest;                                                 ///< Most columns of a row tile.
  /// Zero between launches, and the kernel must leave them so: [0] next work item, [1] blocks that are done, then
  /// `turns[head * column_tiles + tile]`.
  std::int32_t* counters;
  std::int32_t* turns;
  std::int32_t* row_turns;  ///< [row_heads * row_tiles], for sums over the heads that share a row tile.
};

/// Makes the schedule on first use and keeps it, for later calls with equal arguments: training repeats the same few masks in
/// every layer. Each stream has its own, since the counters are in use while a kernel runs. The next call on the stream may release it.
/// `heads` rows of turns, `row_heads` of row turns.
ResidentSchedule resident_schedule(std::span<const Band> bands, RowAxis axis, std::int64_t query_rows, std::int64_t key_rows,
                                   const ScheduleTiles& tiles, std::int64_t heads, StreamView stream, std::int64_t row_heads = 0);

}  // namespace periplus::kernels::cuda
