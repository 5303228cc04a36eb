#pragma once

#include <cstdint>

#include "kernels/attention_problem.h"
#include "kernels/cpu/parallel.h"

/// Boundary between the driver of bf16 attention on matrix tiles (forward_driver.cpp, backward_driver.cpp), compiled for any CPU, and its
/// kernels, compiled for AMX, for dot products of bf16 pairs and for the emulated unit. Plain data, as in ../tile_kernels.h.
namespace periplus::kernels::cpu::bf16 {

inline constexpr std::int64_t kUnit = 32;         ///< Rows, and keys, of the smallest rectangle that is computed.
inline constexpr std::int64_t kBlock = 256;       ///< Keys of a packed block.
inline constexpr std::int64_t kItemRows = 1024;   ///< Most query rows of a work item.
inline constexpr std::int64_t kWidestHead = 256;  ///< Wider heads do not run on tiles.

/// Widths in whole steps of a product.
[[gnu::always_inline]] inline std::int64_t padded(std::int64_t width) { return (width + kUnit - 1) / kUnit * kUnit; }

/// Keys and values of one key/value head, packed by blocks of kBlock keys: key `first_key` of the problem is key 0 here. The first item
/// that needs a block packs it.
struct PackedKeys {
  std::int64_t kv_head;
  std::int32_t* blocks;       ///< [blocks]: BlockState. Several threads read and write it: with __atomic_ built-ins.
  bfloat16* keys;             ///< [blocks][units][D / 32][2 tiles of 16 keys x 32]
  bfloat16* values;           ///< [blocks][E / 32][units][2 tiles of 16 values x 32 keys]
  std::int64_t block_stride;  ///< bf16 from slot to slot: the values of a block follow its keys.
  std::int32_t* slots;        ///< [blocks]: where each block lies.
  std::int32_t* uses;         ///< [blocks]: items to come that see it.
  std::int32_t* spare;  ///< [2 + blocks]: a lock, how many slots are free, and these: the last freed, still in a cache, is taken first.
  /// [keys]: 1 where a value is NaN or infinite. Packed values have 0 there: a weight of 0 must hide them.
  std::uint8_t* poisoned;
  std::uint8_t* any_poisoned;        ///< Written by several threads: with __atomic_ built-ins.
  std::int64_t first_key, keys_end;  ///< Of the problem.
};

enum BlockState : std::int32_t { kUnpacked, kBeingPacked, kPacked };

/// The bands of one tile of kUnit query rows.
struct TileBands {
  const Band* bands;
  std::int64_t count;
};

/// Rows [first_row, first_row + rows) of one query head against the packed keys of its key/value head.
struct ForwardItem {
  std::int64_t head, first_row, rows;
  const TileBands* tiles;  ///< Of the item: one for each kUnit rows, cut to the packed keys.
  PackedKeys packed;
  const std::int32_t* seen;  ///< Blocks that the item sees, rising.
  std::int64_t seen_count;
  /// What the thread is likely to do next: the item at these rows, against these keys. No rows: nothing.
  struct {
    std::int64_t first_row, rows;
    PackedKeys packed;
  } next;
  bool overwrite;
  std::byte* scratch;
  Progress progress;
};

inline constexpr std::int64_t kBackwardItemKeys = 512;  ///< Keys of a backward work item.

/// Query rows of one head for the backward pass, by blocks of kBlock rows, and their sums of dq. The first item that needs a
/// block packs it.
struct PackedQueries {
  bfloat16 *queries, *douts;         ///< [tiles of kUnit rows][D or E / 32][2 tiles]: right operands of scores and of dP.
  bfloat16 *query_rows, *dout_rows;  ///< [blocks][D or E / 32][units][2 tiles]: right operands of dK and dV, without poison.
  float *lse, *delta;                ///< [tiles][kUnit]; lse in base 2, +inf for rows that attend nothing.
  std::uint32_t* alive;              ///< [tiles]: bits of the rows that exist and attend something.
  float* dq;                         ///< [tiles][D / 32][4 tiles]: transposed sums of dq / scale.
  std::uint8_t* poisoned;            ///< [rows]: 1 where q or dout has NaN or infinity.
  std::int32_t* turns;               ///< [blocks]: number of the last item that has added to dq, plus one.
};

/// Up to kBackwardItemKeys keys of one key/value head against all query rows of its heads. Items of a head are numbered by
/// their keys and start in this order.
struct BackwardItem {
  std::int64_t kv_head, first_key, keys;
  const TileBands* tiles;        ///< One for each kUnit query rows.
  const PackedQueries* queries;  ///< Of the query heads that share the keys.
  std::uint8_t* poisoned_keys;   ///< [key_rows]: 1 where k has NaN or infinity.
  std::byte* scratch;
  Progress progress;
};

struct Kernels {
  std::int64_t (*forward_scratch_bytes)(const AttentionShape&);
  void (*forward)(const ForwardProblem<bfloat16, float>&, const ForwardItem&);

  std::int64_t (*backward_scratch_bytes)(const AttentionShape&);
  void (*backward)(const BackwardProblem<bfloat16, float>&, const BackwardItem&);
};

Kernels amx_kernels() noexcept;
Kernels dot_kernels() noexcept;
Kernels emulated_kernels() noexcept;

}  // namespace periplus::kernels::cpu::bf16
