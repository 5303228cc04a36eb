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

/// Sums of values [16 i, 16 i + 16) for the rows of a half.
[[gnu::always_inline]] inline float* sums_of(const QueryTile& tile, std::int64_t half, std::int64_t i) {
  return tile.sums + i / 2 * kUnitScores + (i % 2 * 2 + half) * 256;
}

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

/// Packs a tile's queries and loads its state: at once, or in slices.
class TileLoad {
 public:
  TileLoad() = default;
  TileLoad(const ForwardProblem<bfloat16, float>& p, const bf16::ForwardItem& item, std::int64_t t, float scale, QueryTile& tile)
      : p_(&p),
        item_(&item),
        tile_(&tile),
        scale_(scale),
        first_(item.first_row + t * bf16::kUnit),
        rows_(smaller(bf16::kUnit, item.first_row + item.rows - first_)) {}

  void all() {
    pack_rows_as_b(queries(), p_->q.row, rows_, p_->shape.width_qk, query_tiles() / 2, tile_->queries);
    for (std::int64_t half = 0; half < 2; ++half) {
      load_running(half);
      if (item_->overwrite) continue;
      for (std::int64_t i = 0; i < half_blocks(); ++i) load_sums(half, i);
    }
  }

  std::int64_t slices() const { return query_tiles() + 1 + (item_->overwrite ? 0 : 2 * half_blocks()); }
  void slice(std::int64_t i) {
    if (i < query_tiles()) return pack_tile_as_b(queries(), p_->q.row, rows_, p_->shape.width_qk, i, tile_->queries);
    i -= query_tiles() + 1;
    if (i >= 0) return load_sums(i / half_blocks(), i % half_blocks());
    load_running(0);
    load_running(1);
  }

 private:
  const bfloat16* queries() const { return p_->q.data + first_ * p_->q.row + item_->head * p_->q.head; }
  std::int64_t query_tiles() const { return bf16::padded(p_->shape.width_qk) / kTileRows; }
  std::int64_t half_blocks() const { return bf16::padded(p_->shape.width_v) / kLanes; }

  [[gnu::always_inline]] void load_running(std::int64_t half) {
    Running& running = tile_->running;
    running.scale = splat(scale_);
    running.fresh[half] = running.total[half] = running.bf16[half] = Vec{};
    running.top[half] = splat(kFreshTop);
    if (item_->overwrite) return;
    const Vec lse = load_lse(*p_, item_->head, first_ + half * kLanes, larger(0, rows_ - half * kLanes)) * kLog2E;
    const Ints empty = lse == splat(-kInfinity);
    running.top[half] = empty ? running.top[half] : Unit::ceil(lse);
    running.total[half] = running.bf16[half] = empty ? Vec{} : exp2(lse - running.top[half]);
  }

  /// 16 values of the rows of a half.
  [[gnu::always_inline]] void load_sums(std::int64_t half, std::int64_t i) {
    const std::int64_t row = first_ + half * kLanes, e = i * kLanes;
    const Corner<float, kLanes, kLanes> corner(p_->out.data + row * p_->out.row + item_->head * p_->out.head + e, p_->out.row,
                                               larger(0, rows_ - half * kLanes), larger(0, p_->shape.width_v - e));
    Vec block[kLanes];
    Unit::transpose_words(corner.data(), corner.row_bytes(), block);
    float* to = sums_of(*tile_, half, i);
    for (std::int64_t n = 0; n < kLanes; ++n) store(to + n * kLanes, block[n] * tile_->running.total[half]);
  }

  const ForwardProblem<bfloat16, float>* p_;
  const bf16::ForwardItem* item_;
  QueryTile* tile_;
  float scale_;
  std::int64_t first_, rows_;
};

/// Adds what packing took out of the values: NaN and infinity, to the rows that see them.
inline void add_poison(const ForwardProblem<bfloat16, float>& p, const bf16::ForwardItem& item, std::int64_t t) {
  const std::int64_t first = item.first_row + t * bf16::kUnit, kv = item.head / (p.shape.heads / p.shape.kv_heads);
  const KeyRange seen = keys_seen(item.tiles[t], item.packed.first_key, item.packed.keys_end);
  for (std::int64_t k = seen.begin; k < seen.end; ++k) {
    const std::int64_t local = k - item.packed.first_key;
    // Others may be packing blocks that this tile does not see.
    if (__atomic_load_n(item.packed.blocks + local / bf16::kBlock, __ATOMIC_ACQUIRE) != bf16::kPacked) continue;
    if (item.packed.poisoned[local] == 0) continue;
    const std::uint32_t bits = rows_that_see(item.tiles[t], {first, first + bf16::kUnit, k, k + 1}, k);
    for (std::int64_t row = 0; row < bf16::kUnit; ++row) {
      if ((bits >> row & 1) == 0) continue;
      for (std::int64_t e = 0; e < p.shape.width_v; ++e) {
        const float value = static_cast<float>(p.v.data[k * p.v.row + kv * p.v.head + e]);
        if (!(value - value == 0)) p.out.data[(first + row) * p.out.row + item.head * p.out.head + e] += value;
      }
    }
  }
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

/// Stores the result of a tile: at once, or in slices.
class TileStore {
 public:
  TileStore() = default;
  TileStore(const ForwardProblem<bfloat16, float>& p, const bf16::ForwardItem& item, std::int64_t t, const QueryTile& tile)
      : p_(&p), item_(&item), tile_(&tile), t_(t), first_(item.first_row + t * bf16::kUnit) {
    const std::uint32_t rows = row_bits(0, item.first_row + item.rows - first_);
    lanes_ = (item.overwrite ? ~0u : rows_touched(item.tiles[t], first_)) & rows;
  }

  void all() {
    if (lanes_ == 0) return;
    for (std::int64_t half = 0; half < 2; ++half) {
      store_running(half);
      for (std::int64_t i = 0; i < half_blocks(); ++i) store_sums(half, i);
    }
    finish();
  }

  std::int64_t slices() const { return lanes_ == 0 ? 0 : 2 * half_blocks() + 3; }
  void slice(std::int64_t i) {
    const std::int64_t half_slices = half_blocks() + 1, half = i / half_slices;
    if (half == 2) return finish();
    if (i % half_slices == 0) return store_running(half);
    store_sums(half, i % half_slices - 1);
  }

 private:
  std::int64_t half_blocks() const { return (p_->shape.width_v + kLanes - 1) / kLanes; }
  std::uint32_t lanes_of(std::int64_t half) const { return lanes_ >> (half * kLanes) & 0xffffu; }

  /// The half's lse, and what its sums are divided by.
  [[gnu::always_inline]] void store_running(std::int64_t half) {
    const Vec total = tile_->running.total[half], zero = {};
    // Compare with zero, not "> 0": a NaN must stay visible.
    const Ints empty = total == zero;
    store(factor_, empty ? zero : 1.0f / tile_->running.bf16[half]);
    const Vec lse = empty ? splat(-kInfinity) : tile_->running.top[half] * kLn2 + natural_log(total);
    for (std::int64_t i = 0; i < kLanes; ++i) {
      if ((lanes_of(half) >> i & 1) == 0) continue;
      p_->lse.data[(first_ + half * kLanes + i) * p_->lse.row + item_->head * p_->lse.head] = lse[i];
    }
  }
  /// 16 values of the rows of a half.
  [[gnu::always_inline]] void store_sums(std::int64_t half, std::int64_t i) const {
    float* to = p_->out.data + (first_ + half * kLanes) * p_->out.row + item_->head * p_->out.head + i * kLanes;
    store_transposed(sums_of(*tile_, half, i), factor_, lanes_of(half), to, p_->out.row, p_->shape.width_v - i * kLanes);
  }
  void finish() const {
    if (__atomic_load_n(item_->packed.any_poisoned, __ATOMIC_RELAXED) != 0) add_poison(*p_, *item_, t_);
  }

  const ForwardProblem<bfloat16, float>* p_;
  const bf16::ForwardItem* item_;
  const QueryTile* tile_;
  std::int64_t t_, first_;
  std::uint32_t lanes_;
  alignas(64) float factor_[kLanes];  // of the half at work
};

}  // namespace
}  // namespace periplus::kernels::cpu
