// Packed operands of the backward pass, and its results back to rows. Included by level_<unit>.cpp after a unit.
//
// Five products (algorithms.md 1.2), all on units of 32 keys x 32 query rows:
//   S^T = K Q^T, dP^T = V dO^T   left: rows of K and V as they lie; right: Q and dO, pairs of columns transposed;
//   dV += P^T dO, dK += dS^T Q   left: rows of weights by key; right: rows of dO and Q in pairs (n, n + 16);
//   dQ^T += K^T dS^T             left: K transposed; right: rows of dS by key in pairs (2n, 2n + 1).
// The pairs (n, n + 16) are how the two halves of a row of weights come out of the registers: the order of the summed index
// is free as long as both sides agree. In the last three products masked weights of 0 meet all rows, so NaN and infinity
// are taken out of their right or left operand here and put back into the results at the end.
#pragma once

#include "kernels/cpu/bf16/kernels.h"
#include "kernels/cpu/bf16/mask.h"
#include "kernels/cpu/bf16/pack.h"

namespace periplus::kernels::cpu {
namespace {

/// Rows [0, rows) of 32 at columns [column, column + 32), paired (n, n + 16); returns lanes with NaN or infinity. Clean: marks their rows
/// in `bad` and packs zeros instead.
template <bool Clean>
[[gnu::always_inline]] inline Ints load_in_halves(const bfloat16* from, std::int64_t stride, std::int64_t rows, std::int64_t width,
                                                  std::int64_t column, bfloat16* to, std::uint8_t* bad) {
  Ints any_bad = {};
  for (std::int64_t n = 0; n < kTileRows; ++n) {
    Vec row[2] = {};
    for (std::int64_t half = 0; half < 2; ++half) {
      const std::int64_t i = n + half * kTileRows;
      if (i >= rows) continue;
      row[half] = load_pairs(from + i * stride, column, width);
      const Ints lanes = poison(row[half]);
      any_bad |= lanes;
      if constexpr (Clean) {
        if (any(lanes)) bad[i] = 1;
        row[half] = without_poison(row[half]);
      }
    }
    const PairedRows zipped = pair_rows(row[0], row[1]);
    store_bits(to + n * 32, zipped.low);
    store_bits(to + kTile + n * 32, zipped.high);
  }
  return any_bad;
}

/// to: for each 32 columns, pair_stride apart, 2 tiles of 16 pairs of rows (n, n + 16) x 16 columns. bad: as in
/// pack_rows_transposed.
inline void pack_rows_in_halves(const bfloat16* from, std::int64_t stride, std::int64_t rows, std::int64_t width, std::int64_t column_pairs,
                                std::int64_t pair_stride, bfloat16* to, std::uint8_t* bad) {
  for (std::int64_t pair = 0; pair < column_pairs; ++pair) {
    bfloat16* at = to + pair * pair_stride;
    if (any(load_in_halves<false>(from, stride, rows, width, pair * 32, at, bad))) {
      load_in_halves<true>(from, stride, rows, width, pair * 32, at, bad);
    }
  }
}

constexpr std::int64_t kBlockUnits = bf16::kBlock / bf16::kUnit;

inline std::int64_t qk_steps(const AttentionShape& shape) { return bf16::padded(shape.width_qk) / bf16::kUnit; }
inline std::int64_t v_steps(const AttentionShape& shape) { return bf16::padded(shape.width_v) / bf16::kUnit; }

/// Softmax terms of one tile of query rows.
inline void pack_row_terms(const BackwardProblem<bfloat16, float>& p, std::int64_t head, std::int64_t tile, const bf16::PackedQueries& to) {
  std::uint32_t alive = 0;
  for (std::int64_t i = 0; i < bf16::kUnit; ++i) {
    const std::int64_t row = tile * bf16::kUnit + i;
    float lse = -kInfinity, delta = 0;
    if (row < p.shape.query_rows) {
      lse = p.lse.data[row * p.lse.row + head * p.lse.head];
      delta = p.delta.data[row * p.delta.row + head * p.delta.head];
    }
    const bool empty = lse == -kInfinity;
    to.lse[row] = empty ? kInfinity : lse * kLog2E;
    to.delta[row] = delta;
    if (!empty) alive |= std::uint32_t{1} << i;
  }
  to.alive[tile] = alive;
}

/// Packs one block of rows of one query head and clears its sums.
inline void pack_queries(const BackwardProblem<bfloat16, float>& p, std::int64_t head, std::int64_t block, const bf16::PackedQueries& to) {
  const std::int64_t d = qk_steps(p.shape), e = v_steps(p.shape), plane = kBlockUnits * 2 * kTile;
  __builtin_memset(to.poisoned + block * bf16::kBlock, 0, static_cast<std::size_t>(bf16::kBlock));
  __builtin_memset(to.dq + block * bf16::kBlock * d * 32, 0, static_cast<std::size_t>(bf16::kBlock * d * 32) * sizeof(float));
  for (std::int64_t unit = 0; unit < kBlockUnits; ++unit) {
    const std::int64_t tile = block * kBlockUnits + unit, row = tile * bf16::kUnit;
    const std::int64_t rows = larger(0, smaller(bf16::kUnit, p.shape.query_rows - row));
    const bfloat16* q = p.q.data + row * p.q.row + head * p.q.head;
    const bfloat16* dout = p.dout.data + row * p.dout.row + head * p.dout.head;
    pack_rows_as_b(q, p.q.row, rows, p.shape.width_qk, d, to.queries + tile * d * 2 * kTile);
    pack_rows_as_b(dout, p.dout.row, rows, p.shape.width_v, e, to.douts + tile * e * 2 * kTile);
    const std::int64_t at = unit * 2 * kTile;
    pack_rows_in_halves(q, p.q.row, rows, p.shape.width_qk, d, plane, to.query_rows + block * d * plane + at, to.poisoned + row);
    pack_rows_in_halves(dout, p.dout.row, rows, p.shape.width_v, e, plane, to.dout_rows + block * e * plane + at, to.poisoned + row);
    pack_row_terms(p, head, tile, to);
  }
}

/// Keys and values of an item, by blocks.
struct PackedItemKeys {
  bfloat16 *keys, *values;  ///< [units][D or E / 32][2 tiles]: left operands of scores and of dP.
  bfloat16* key_columns;    ///< [blocks][D / 32][units][2 tiles]: left operand of dq, without poison.
};

/// bad: as in pack_rows_transposed, from the first key of the item on.
inline void pack_item_keys(const BackwardProblem<bfloat16, float>& p, const bf16::BackwardItem& item, const PackedItemKeys& to) {
  const std::int64_t d = qk_steps(p.shape), e = v_steps(p.shape), plane = kBlockUnits * 2 * kTile;
  std::uint8_t* bad = item.poisoned_keys + item.first_key;
  __builtin_memset(bad, 0, static_cast<std::size_t>(item.keys));
  for (std::int64_t unit = 0; unit * bf16::kUnit < round_up(item.keys, bf16::kBlock); ++unit) {
    const std::int64_t key = unit * bf16::kUnit, keys = larger(0, smaller(bf16::kUnit, item.keys - key));
    const bfloat16* k = p.k.data + (item.first_key + key) * p.k.row + item.kv_head * p.k.head;
    const bfloat16* v = p.v.data + (item.first_key + key) * p.v.row + item.kv_head * p.v.head;
    pack_rows_as_a(k, p.k.row, keys, p.shape.width_qk, d, to.keys + unit * d * 2 * kTile);
    pack_rows_as_a(v, p.v.row, keys, p.shape.width_v, e, to.values + unit * e * 2 * kTile);
    bfloat16* columns = to.key_columns + unit / kBlockUnits * d * plane + unit % kBlockUnits * 2 * kTile;
    pack_rows_transposed(k, p.k.row, keys, p.shape.width_qk, d, plane, columns, bad + key);
  }
}

/// Makes dq NaN where packing hid a NaN or infinity of k from its rows: the sign of dS is not known here.
inline void poison_dq(const BackwardProblem<bfloat16, float>& p, const bf16::BackwardItem& item, std::int64_t head, std::int64_t tile,
                      std::uint32_t alive) {
  const std::int64_t first = tile * bf16::kUnit;
  const auto add = [&](std::int64_t k, std::uint32_t rows) {
    // In this order: items of keys that the tile does not see may be packing them now.
    const std::uint32_t bits = alive & rows;
    if (bits == 0 || item.poisoned_keys[k] == 0) return;
    for (std::int64_t d = 0; d < p.shape.width_qk; ++d) {
      const float value = static_cast<float>(p.k.data[k * p.k.row + item.kv_head * p.k.head + d]);
      if (value - value == 0) continue;
      for (std::int64_t row = 0; row < bf16::kUnit; ++row) {
        if ((bits >> row & 1) != 0) p.dq.data[(first + row) * p.dq.row + head * p.dq.head + d] += value - value;
      }
    }
  };
  for_each_seen(item.tiles[tile], first, {0, p.shape.key_rows}, add);
}

/// Whether some key that one of the bands reaches is poisoned.
inline bool sees_poison(const bf16::TileBands& tile, const std::uint8_t* poisoned) {
  std::uint32_t any = 0;
  for (std::int64_t b = 0; b < tile.count; ++b) {
    for (std::int64_t k = tile.bands[b].k0; k < tile.bands[b].k1; ++k) any |= poisoned[k];
  }
  return any != 0;
}

/// dq of one block of rows := or += scale times its sums.
inline void store_dq(const BackwardProblem<bfloat16, float>& p, const bf16::BackwardItem& item, std::int64_t head, std::int64_t block,
                     const bf16::PackedQueries& packed) {
  const Vec scale = splat(static_cast<float>(p.scale));
  for (std::int64_t tile = block * kBlockUnits; tile < (block + 1) * kBlockUnits; ++tile) {
    const std::int64_t first = tile * bf16::kUnit, rows = smaller(bf16::kUnit, p.shape.query_rows - first);
    if (rows <= 0 || (item.tiles[tile].count == 0 && !p.overwrite_dq)) continue;
    for (std::int64_t d = 0; d < p.shape.width_qk; d += kLanes) {
      for (std::int64_t half = 0; half < 2; ++half) {
        const float* from = packed.dq + tile * bf16::padded(p.shape.width_qk) * 32 + d / 32 * 1024 + (d / 16 % 2 * 2 + half) * 256;
        Vec sums[kLanes];
        Unit::transpose_words(from, 4 * kLanes, sums);
#pragma GCC unroll 16
        for (std::int64_t i = 0; i < kLanes; ++i) {
          if (i >= rows - half * kLanes) break;
          float* at = p.dq.data + (first + half * kLanes + i) * p.dq.row + head * p.dq.head + d;
          const Vec dq = sums[i] * scale;
          store_some(at, p.overwrite_dq ? dq : dq + load_some(at, p.shape.width_qk - d), p.shape.width_qk - d);
        }
      }
    }
    if (sees_poison(item.tiles[tile], item.poisoned_keys)) poison_dq(p, item, head, tile, packed.alive[tile]);
  }
}

}  // namespace
}  // namespace periplus::kernels::cpu
