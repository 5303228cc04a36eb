// The running state (out, lse) of a tile of 32 query rows, between memory and the form the products use. Included by
// level_<unit>.cpp after a unit.
//
// In memory a row is out = sums / total and lse = (top + log2 total) ln 2. Here the sums are tiles: 16 values by 16 query
// rows, transposed. Loading takes top = ceil(lse in base 2), so that total is in (1/2, 1] and a block that raises nothing
// multiplies nothing; storing divides. Both transpose E x 32 numbers, about 6 % of the time of a tile that sees 4,096 keys:
// this, and packing the queries, is all that a sequence of blocks costs more than one call.
#pragma once

#include "kernels/cpu/bf16/kernels.h"
#include "kernels/cpu/bf16/mask.h"

namespace periplus::kernels::cpu {
namespace {

/// One tile of 32 query rows.
struct QueryTile {
  bfloat16* queries;  ///< [D / 32][2 tiles]
  float* sums;        ///< [E / 32][4 tiles], transposed and times `total`
  Running running;
};

/// Rows of the tile that some band mentions: the others keep their state bit for bit.
inline std::uint32_t rows_touched(const bf16::TileBands& bands, std::int64_t first_row) {
  std::uint32_t bits = 0;
  for (std::int64_t b = 0; b < bands.count; ++b) bits |= row_bits(bands.bands[b].q0 - first_row, bands.bands[b].q1 - first_row);
  return bits;
}

/// lse of 16 rows, -inf past the last.
inline Vec load_lse(const ForwardProblem<bfloat16, float>& p, std::int64_t head, std::int64_t row, std::int64_t rows) {
  Vec lse = splat(-kInfinity);
  for (std::int64_t i = 0; i < smaller(rows, kLanes); ++i) lse[i] = p.lse.data[(row + i) * p.lse.row + head * p.lse.head];
  return lse;
}

inline void load_tile(const ForwardProblem<bfloat16, float>& p, const bf16::ForwardItem& item, std::int64_t t, float scale,
                      QueryTile& tile) {
  const std::int64_t first = item.first_row + t * bf16::kUnit, rows = smaller(bf16::kUnit, item.first_row + item.rows - first);
  pack_rows_as_b(p.q.data + first * p.q.row + item.head * p.q.head, p.q.row, rows, p.shape.width_qk,
                 bf16::padded(p.shape.width_qk) / bf16::kUnit, tile.queries);
  tile.running.scale = splat(scale);
  const std::int64_t width = bf16::padded(p.shape.width_v);
  for (std::int64_t half = 0; half < 2; ++half) {
    const std::int64_t row = first + half * kLanes, count = larger(0, rows - half * kLanes);
    tile.running.fresh[half] = tile.running.total[half] = tile.running.bf16[half] = Vec{};
    tile.running.top[half] = splat(kFreshTop);
    if (item.overwrite) continue;
    const Vec lse = load_lse(p, item.head, row, count) * kLog2E;
    const Ints empty = lse == splat(-kInfinity);
    tile.running.top[half] = empty ? tile.running.top[half] : Unit::ceil(lse);
    tile.running.total[half] = tile.running.bf16[half] = empty ? Vec{} : exp2(lse - tile.running.top[half]);
    for (std::int64_t e = 0; e < width; e += kLanes) {
      const Corner<float, kLanes, kLanes> corner(p.out.data + row * p.out.row + item.head * p.out.head + e, p.out.row, count,
                                                 larger(0, p.shape.width_v - e));
      Vec block[kLanes];
      Unit::transpose_words(corner.data(), corner.row_bytes(), block);
      float* to = tile.sums + e / 32 * kUnitScores + (e / 16 % 2 * 2 + half) * 256;
      for (std::int64_t i = 0; i < kLanes; ++i) store(to + i * kLanes, block[i] * tile.running.total[half]);
    }
  }
}

/// Adds what packing took out of the values: NaN and infinity, to the rows that see them.
inline void add_poison(const ForwardProblem<bfloat16, float>& p, const bf16::ForwardItem& item, std::int64_t t) {
  const std::int64_t first = item.first_row + t * bf16::kUnit, kv = item.head / (p.shape.heads / p.shape.kv_heads);
  const auto add = [&](std::int64_t k, std::uint32_t rows) {
    const std::int64_t local = k - item.packed.first_key;
    // Others may be packing blocks that this tile does not see.
    if (__atomic_load_n(item.packed.blocks + local / bf16::kBlock, __ATOMIC_ACQUIRE) != bf16::kPacked) return;
    if (item.packed.poisoned[local] == 0) return;
    for (std::int64_t row = 0; row < bf16::kUnit; ++row) {
      if ((rows >> row & 1) == 0) continue;
      for (std::int64_t e = 0; e < p.shape.width_v; ++e) {
        const float value = static_cast<float>(p.v.data[k * p.v.row + kv * p.v.head + e]);
        if (!(value - value == 0)) p.out.data[(first + row) * p.out.row + item.head * p.out.head + e] += value;
      }
    }
  };
  for_each_seen(item.tiles[t], first, keys_seen(item.tiles[t], item.packed.first_key, item.packed.keys_end), add);
}

/// to[lane][i] = from[i][lane] * factor[lane] for i < min(width, 16) and the lanes in `lanes`.
[[gnu::always_inline]] inline void store_transposed(const float* from, const float* factor, std::uint32_t lanes, float* to,
                                                    std::int64_t stride, std::int64_t width) {
  Vec block[kLanes];
  Unit::transpose_words(from, 4 * kLanes, block);
  // Unrolled: an index that is not constant would send the block through memory.
  if (lanes == 0xffffu && width >= kLanes) {
#pragma GCC unroll 16
    for (std::int64_t lane = 0; lane < kLanes; ++lane) store(to + lane * stride, block[lane] * factor[lane]);
    return;
  }
#pragma GCC unroll 16
  for (std::int64_t lane = 0; lane < kLanes; ++lane) {
    if ((lanes >> lane & 1) != 0) store_some(to + lane * stride, block[lane] * factor[lane], width);
  }
}

inline void store_tile(const ForwardProblem<bfloat16, float>& p, const bf16::ForwardItem& item, std::int64_t t, const QueryTile& tile) {
  const bf16::TileBands& bands = item.tiles[t];
  if (bands.count == 0 && !item.overwrite) return;
  const std::int64_t first = item.first_row + t * bf16::kUnit, rows = smaller(bf16::kUnit, item.first_row + item.rows - first);
  const std::uint32_t touched = (item.overwrite ? ~0u : rows_touched(bands, first)) & row_bits(0, rows);
  for (std::int64_t half = 0; half < 2; ++half) {
    const std::int64_t row = first + half * kLanes;
    const std::uint32_t mine = touched >> (half * kLanes) & 0xffffu;
    const Vec total = tile.running.total[half], zero = {};
    // Compare with zero, not "> 0": a NaN must stay visible.
    const Ints empty = total == zero;
    alignas(64) float factor[kLanes];
    store(factor, empty ? zero : 1.0f / tile.running.bf16[half]);
    const Vec lse = empty ? splat(-kInfinity) : tile.running.top[half] * kLn2 + natural_log(total);
    for (std::int64_t i = 0; i < kLanes; ++i) {
      if ((mine >> i & 1) != 0) p.lse.data[(row + i) * p.lse.row + item.head * p.lse.head] = lse[i];
    }
    for (std::int64_t e = 0; e < p.shape.width_v; e += kLanes) {
      const float* from = tile.sums + e / 32 * kUnitScores + (e / 16 % 2 * 2 + half) * 256;
      store_transposed(from, factor, mine, p.out.data + row * p.out.row + item.head * p.out.head + e, p.out.row, p.shape.width_v - e);
    }
  }
  if (__atomic_load_n(item.packed.any_poisoned, __ATOMIC_RELAXED) != 0) add_poison(p, item, t);
}

}  // namespace
}  // namespace periplus::kernels::cpu
