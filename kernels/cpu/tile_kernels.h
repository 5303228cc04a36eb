#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention_problem.h"
#include "kernels/cpu/kernel_set.h"
#include "kernels/cpu/parallel.h"

/// Boundary between the driver, compiled for any CPU, and the tile kernels, compiled once per instruction set. Only plain
/// data crosses it: an inline function shared by both sides could be linked in its AVX-512 form and run everywhere.
namespace periplus::kernels::cpu {

inline constexpr std::int64_t kForwardRows = 512;   ///< Most query rows of a forward tile.
inline constexpr std::int64_t kBackwardKeys = 128;  ///< Keys of a backward tile.
inline constexpr std::int64_t kBackwardRows = 64;   ///< Query rows of a backward tile.

/// One query tile of one head. `bands` are cut to its rows.
struct ForwardItem {
  const Band* bands;
  std::int64_t band_count;
  std::int64_t head, first_row, rows;
  std::byte* scratch;
  Progress progress;
};

/// The bands of one tile of query rows.
struct BandList {
  const Band* bands;
  std::int64_t count;
};

/// One key tile of one key/value head, against all query tiles of its group of query heads.
struct BackwardItem {
  std::int64_t kv_head, tile, first_key, keys;
  std::int64_t first_query_tile, last_query_tile;  ///< Query tiles that the bands of this key tile reach.
  const BandList* query_tiles;                     ///< Bands by query tile.
  std::int64_t query_tile_count;
  /// [heads, query tiles]: one more than the last key tile that was added to this tile of dq, 0 if none was. Key tiles add
  /// in rising order, whichever thread computes them; this makes dq independent of the number of threads.
  std::int32_t* turns;
  std::byte* scratch;
  Progress progress;
};

template <class S>
struct TileKernels {
  std::int64_t (*forward_scratch_bytes)(const AttentionShape&);
  std::int64_t (*backward_scratch_bytes)(const AttentionShape&);
  void (*forward)(const ForwardProblem<S, float>&, const ForwardItem&);
  void (*backward)(const BackwardProblem<S, float>&, const BackwardItem&);
};

KernelSet<TileKernels> scalar_tile_kernels() noexcept;
KernelSet<TileKernels> avx2_tile_kernels() noexcept;
KernelSet<TileKernels> avx512_tile_kernels() noexcept;

}  // namespace periplus::kernels::cpu
