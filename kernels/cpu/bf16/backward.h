// Backward pass of one work item on tiles (algorithms.md 1.2). Included by level_<unit>.cpp after a unit.
//
// An item is up to 512 keys of one key/value head: packed they and their sums of dK and dV (896 KiB for heads of 128) stay
// in the second-level cache while the query rows of all heads of the group pass in blocks of 256. The first item that needs
// a block of rows packs it, the last stores its dq: both find it in the cache. A block meets 256 keys at a time, in two phases:
//   by query tile  S^T and dP^T unit by unit; while the tile unit computes one, the vector unit turns the last into P and dS;
//                  then dQ^T += K^T dS^T over the units of the tile, whose dS are still in the first-level cache;
//   by columns     dV += P^T dO and dK += dS^T Q for each unit of keys, over all rows of the block.
// Sums of dK and dV come from the second-level cache and return there: loading and storing them as tiles stalls products for
// 200 cycles in 700. So in the second phase, where the vector unit is idle, a product starts from zero and leaves its sums in
// the first-level cache, and they are added to the others during the next product.
// Items take turns at each block of dq, in rising order of keys, so that sums do not depend on the number of threads.
#pragma once

#include <sched.h>

#include "kernels/cpu/bf16/backward_weights.h"
#include "kernels/cpu/bf16/kernels.h"
#include "kernels/cpu/bf16/product.h"
#include "kernels/cpu/carver.h"

namespace periplus::kernels::cpu {
namespace {

/// P and dS of a unit of keys: its tiles by query tile, and one spare, which spreads the units over the sets of the cache.
constexpr std::int64_t kUnitStride = (kBlockUnits + 1) * 2 * kTile;

struct BackwardScratch {
  float* scores;                ///< [2][S or dP][kUnitScores]
  bfloat16 *weights, *dscores;  ///< [units][kUnitStride]
  bfloat16* dscores_in_pairs;   ///< [units][2 tiles]
  float* fresh;                 ///< [2][kUnitScores]
  float* discard;               ///< [kUnitScores]
  float *dk, *dv;               ///< [blocks][D or E / 32][units][4 tiles]
  PackedItemKeys packed;
};

inline BackwardScratch carve_backward(const AttentionShape& shape, Carver& carver) {
  const std::int64_t d = bf16::padded(shape.width_qk), e = bf16::padded(shape.width_v);
  BackwardScratch on;
  on.scores = carver.take(4 * kUnitScores);
  on.dscores_in_pairs = carver.take<bfloat16>(kBlockUnits * 2 * kTile);
  on.weights = carver.take<bfloat16>(kBlockUnits * kUnitStride);
  on.dscores = carver.take<bfloat16>(kBlockUnits * kUnitStride);
  on.fresh = carver.take(2 * kUnitScores);
  on.discard = carver.take(kUnitScores);
  on.dk = carver.take(bf16::kBackwardItemKeys * d);
  on.dv = carver.take(bf16::kBackwardItemKeys * e);
  on.packed.keys = carver.take<bfloat16>(bf16::kBackwardItemKeys * d);
  on.packed.values = carver.take<bfloat16>(bf16::kBackwardItemKeys * e);
  on.packed.key_columns = carver.take<bfloat16>(bf16::kBackwardItemKeys * d);
  return on;
}

inline std::int64_t backward_scratch_bytes(const AttentionShape& shape) {
  Carver carver(nullptr);
  carve_backward(shape, carver);
  return carver.bytes();
}

/// What stays the same for all blocks of an item.
struct BackwardCall {
  const BackwardProblem<bfloat16, float>& problem;
  const bf16::BackwardItem& item;
  BackwardScratch on;
  std::int64_t d, e;            ///< In steps of a product.
  float scale, cap, cap_scale;  ///< As in the forward pass.
};

/// Units [begin, end) of the keys of a block.
struct UnitSpan {
  std::int64_t begin, end;
  bool has(std::int64_t unit) const { return begin <= unit && unit < end; }
};

/// A query tile and a block of keys.
struct TilePlace {
  std::int64_t tile;
  std::int64_t key_block;  ///< Of the item.
  UnitSpan units;
};

/// The units of keys [k0, k0 + kBlock) that some band of the tile reaches, and perhaps some between.
inline UnitSpan units_reached(const bf16::TileBands& tile, std::int64_t k0) {
  std::int64_t begin = bf16::kBlock, end = 0;
  for (std::int64_t b = 0; b < tile.count; ++b) {
    const std::int64_t from = larger(tile.bands[b].k0 - k0, 0), to = smaller(tile.bands[b].k1 - k0, bf16::kBlock);
    if (from >= to) continue;
    begin = smaller(begin, from);
    end = larger(end, to);
  }
  return begin < end ? UnitSpan{begin / bf16::kUnit, (end + bf16::kUnit - 1) / bf16::kUnit} : UnitSpan{0, 0};
}

/// First phase for one query tile. Steps of a product are D / 32 and E / 32 as template arguments, so that the weights are
/// spread over the products at compile time; 0: any, and nothing is spread.
template <int StepsD, int StepsE>
void weigh_tile(const BackwardCall& call, const bf16::PackedQueries& queries, const TilePlace& place, Pending& pending) {
  constexpr bool kSpread = StepsD > 0;
  const std::int64_t d = kSpread ? StepsD : call.d, e = kSpread ? StepsE : call.e;
  const bf16::TileBands& bands = call.item.tiles[place.tile];
  const std::uint32_t alive = queries.alive[place.tile];
  const std::int64_t row = place.tile * bf16::kUnit, in_block = place.tile % kBlockUnits;
  const RowTerms terms{{load(queries.lse + row), load(queries.lse + row + kLanes)},
                       {load(queries.delta + row), load(queries.delta + row + kLanes)},
                       splat(call.scale)};
  const auto scores_of = [&](std::int64_t unit) __attribute__((always_inline)) { return call.on.scores + unit % 2 * 2 * kUnitScores; };
  const auto gradients_of = [&](std::int64_t unit) __attribute__((always_inline)) {
    const std::int64_t at = unit * kUnitStride + in_block * 2 * kTile;
    return UnitGradients{scores_of(unit), scores_of(unit) + kUnitScores, call.on.weights + at, call.on.dscores + at,
                         call.on.dscores_in_pairs + unit * 2 * kTile};
  };
  const auto at_unit = [&](std::int64_t unit) __attribute__((always_inline)) {
    const std::int64_t k0 = call.item.first_key + place.key_block * bf16::kBlock + unit * bf16::kUnit;
    return UnitPlace{row, row + bf16::kUnit, k0, smaller(k0 + bf16::kUnit, call.problem.shape.key_rows)};
  };
  const auto is_plain = [&](std::int64_t unit) __attribute__((always_inline)) {
    return call.cap == 0 && alive == ~0u && wholly_allowed(bands, at_unit(unit));
  };
  const auto weigh_alone = [&](std::int64_t unit) {
    const UnitGradients on = gradients_of(unit);
    if (is_plain(unit)) {
      for (std::int64_t piece = 0; piece < kPieces; ++piece) weigh_piece<true>(on, piece, terms, {});
      return;
    }
    Visible visible = visible_pairs(bands, at_unit(unit));
    for (std::uint32_t& rows : visible.rows) rows &= alive;
    for (std::int64_t piece = 0; piece < kPieces; ++piece) weigh_piece<false>(on, piece, terms, {visible.rows, call.cap, call.cap_scale});
  };

  const bfloat16* keys = call.on.packed.keys + place.key_block * kBlockUnits * d * 2 * kTile;
  const bfloat16* values = call.on.packed.values + place.key_block * kBlockUnits * e * 2 * kTile;
  for (std::int64_t unit = place.units.begin; unit < place.units.end; ++unit) {
    const Pending::Operands scores{keys + unit * d * 2 * kTile, queries.queries + place.tile * d * 2 * kTile, 2 * kTile, 2 * kTile};
    const Pending::Operands dweights{values + unit * e * 2 * kTile, queries.douts + place.tile * e * 2 * kTile, 2 * kTile, 2 * kTile};
    float* to = scores_of(unit);
    if (kSpread && unit > place.units.begin && is_plain(unit - 1)) {
      const PiecewiseWeights<4 * (StepsD + StepsE)> weights(gradients_of(unit - 1), terms);
      pending.multiply(false, scores, StepsD, to, weights);
      pending.multiply(
          false, dweights, StepsE, to + kUnitScores, [&]<int I>(std::int64_t step, Product<I> product) __attribute__((always_inline)) {
            weights(step + StepsD, product);
          });
      weights.finish();
    } else {
      pending.multiply(false, scores, d, to);
      if (unit > place.units.begin) weigh_alone(unit - 1);
      pending.multiply(false, dweights, e, to + kUnitScores);
    }
  }

  const std::int64_t last = place.units.end - 1, count = place.units.end - place.units.begin;
  const bfloat16* columns = call.on.packed.key_columns + (place.key_block * d * kBlockUnits + place.units.begin) * 2 * kTile;
  const bfloat16* dscores = call.on.dscores_in_pairs + place.units.begin * 2 * kTile;
  float* sums = queries.dq + place.tile * d * kUnitScores;
  for (std::int64_t column = 0; column < d; ++column) {
    const Pending::Operands on{columns + column * kBlockUnits * 2 * kTile, dscores, 2 * kTile, 2 * kTile};
    if (column > 0) {
      pending.multiply(true, on, count, sums + column * kUnitScores);
    } else if (kSpread && count >= 6 && is_plain(last)) {
      // The last unit is needed by the last step only: 17 products before that one are enough for its pieces.
      pending.multiply(true, on, count, sums, PiecewiseWeights<17>(gradients_of(last), terms));
    } else {
      pending.flush();
      weigh_alone(last);
      Unit::fence();
      pending.multiply(true, on, count, sums);
    }
  }
}

using WeighTile = void (*)(const BackwardCall&, const bf16::PackedQueries&, const TilePlace&, Pending&);
inline WeighTile weigh_tile_of(std::int64_t d, std::int64_t e) {
  if (d == 6 && e == 4) return weigh_tile<6, 4>;
  constexpr WeighTile kSame[] = {weigh_tile<1, 1>, weigh_tile<2, 2>, weigh_tile<3, 3>, weigh_tile<4, 4>,
                                 weigh_tile<5, 5>, weigh_tile<6, 6>, weigh_tile<7, 7>, weigh_tile<8, 8>};
  return d == e ? kSame[d - 1] : weigh_tile<0, 0>;
}

/// Adds 4 KiB of sums to others, a few vectors after each product from the second step on.
struct AddSums {
  static constexpr std::int64_t kAtOnce = 3, kVectors = kUnitScores / kLanes;
  float* to;
  const float* from;

  template <int I>
  [[gnu::always_inline]] void operator()(std::int64_t step, Product<I>) const {
    if (step > 0) add((4 * (step - 1) + I) * kAtOnce, kAtOnce);
  }
  [[gnu::always_inline]] void add(std::int64_t first, std::int64_t count) const {
    for (std::int64_t i = first; i < smaller(first + count, kVectors); ++i)
      store(to + i * kLanes, load(to + i * kLanes) + load(from + i * kLanes));
  }
};

/// Products that end in sums far away: see the top of the file.
class DistantSums {
 public:
  DistantSums(Pending& pending, float* fresh) : pending_(pending), fresh_{fresh, fresh + kUnitScores} {}
  void multiply(const Pending::Operands& on, std::int64_t steps, float* sums) {
    if (sums_ == nullptr) {
      pending_.multiply(false, on, steps, fresh_[0]);
    } else {
      const AddSums add{sums_, fresh_[1]};
      pending_.multiply(false, on, steps, fresh_[0], add);
      add.add((steps - 1) * 4 * AddSums::kAtOnce, AddSums::kVectors);
    }
    sums_ = sums;
    std::swap(fresh_[0], fresh_[1]);
  }
  void finish() {
    pending_.flush();
    if (sums_ != nullptr) AddSums{sums_, fresh_[1]}.add(0, AddSums::kVectors);
    sums_ = nullptr;
  }

 private:
  Pending& pending_;
  float* fresh_[2];
  float* sums_ = nullptr;
};

/// Second phase for one operand: sums[columns][units] += weights^T rows.
inline void sum_over_rows(DistantSums& distant, const UnitSpan (&tiles)[kBlockUnits], const bfloat16* weights, const bfloat16* rows,
                          std::int64_t columns, float* sums, Pacer& pacer) {
  for (std::int64_t column = 0; column < columns; ++column) {
    double flop = 0;
    for (std::int64_t unit = 0; unit < kBlockUnits; ++unit) {
      const std::int64_t first = tiles[unit].begin, count = tiles[unit].end - first;
      if (count <= 0) continue;
      const Pending::Operands on{weights + unit * kUnitStride + first * 2 * kTile, rows + (column * kBlockUnits + first) * 2 * kTile,
                                 2 * kTile, 2 * kTile};
      distant.multiply(on, count, sums + (column * kBlockUnits + unit) * kUnitScores);
      flop += 2.0 * 32 * 32 * 32 * static_cast<double>(count);
    }
    pacer.did(flop);
  }
}

/// One block of query rows against one block of keys.
inline void backward_block(const BackwardCall& call, WeighTile weigh, const bf16::PackedQueries& queries, std::int64_t query_block,
                           std::int64_t key_block, Pending& pending, Pacer& pacer) {
  const std::int64_t first_tile = query_block * kBlockUnits, tiles = (call.problem.shape.query_rows + bf16::kUnit - 1) / bf16::kUnit;
  UnitSpan by_tile[kBlockUnits] = {}, by_unit[kBlockUnits];
  for (UnitSpan& span : by_unit) span = {kBlockUnits, 0};
  for (std::int64_t t = 0; t < smaller(kBlockUnits, tiles - first_tile); ++t) {
    by_tile[t] = units_reached(call.item.tiles[first_tile + t], call.item.first_key + key_block * bf16::kBlock);
    if (by_tile[t].begin == by_tile[t].end) continue;
    weigh(call, queries, {first_tile + t, key_block, by_tile[t]}, pending);
    for (std::int64_t unit = by_tile[t].begin; unit < by_tile[t].end; ++unit) {
      by_unit[unit] = {smaller(by_unit[unit].begin, t), t + 1};
    }
    pacer.did(2.0 * 32 * 32 * 32 * static_cast<double>((2 * call.d + call.e) * (by_tile[t].end - by_tile[t].begin)));
  }
  pending.flush();
  // Tiles that lie between those that see a unit of keys, but do not themselves.
  for (std::int64_t unit = 0; unit < kBlockUnits; ++unit) {
    for (std::int64_t t = by_unit[unit].begin; t < by_unit[unit].end; ++t) {
      if (by_tile[t].has(unit)) continue;
      const std::int64_t at = unit * kUnitStride + t * 2 * kTile;
      __builtin_memset(static_cast<void*>(call.on.weights + at), 0, static_cast<std::size_t>(2 * kTile * 2));
      __builtin_memset(static_cast<void*>(call.on.dscores + at), 0, static_cast<std::size_t>(2 * kTile * 2));
    }
  }
  Unit::fence();
  const std::int64_t plane = kBlockUnits * 2 * kTile;
  DistantSums distant(pending, call.on.fresh);
  sum_over_rows(distant, by_unit, call.on.weights, queries.dout_rows + query_block * call.e * plane, call.e,
                call.on.dv + key_block * call.e * kBlockUnits * kUnitScores, pacer);
  sum_over_rows(distant, by_unit, call.on.dscores, queries.query_rows + query_block * call.d * plane, call.d,
                call.on.dk + key_block * call.d * kBlockUnits * kUnitScores, pacer);
  distant.finish();
}

/// Whether the item has pairs in a block of query rows; the number of the item before that has, plus one (0: none); and
/// whether one after has.
struct Turn {
  bool mine, last;
  std::int32_t before;
};
inline Turn turn_at(const BackwardCall& call, std::int64_t query_block) {
  const std::int64_t tiles = (call.problem.shape.query_rows + bf16::kUnit - 1) / bf16::kUnit;
  const std::int64_t index = call.item.first_key / bf16::kBackwardItemKeys;
  Turn turn{false, true, 0};
  for (std::int64_t t = query_block * kBlockUnits; t < smaller((query_block + 1) * kBlockUnits, tiles); ++t) {
    for (std::int64_t b = 0; b < call.item.tiles[t].count; ++b) {
      const std::int64_t first = call.item.tiles[t].bands[b].k0 / bf16::kBackwardItemKeys;
      const std::int64_t last = (call.item.tiles[t].bands[b].k1 - 1) / bf16::kBackwardItemKeys;
      turn.mine |= first <= index && index <= last;
      turn.last &= last <= index;
      if (first < index) turn.before = static_cast<std::int32_t>(larger(turn.before, smaller(index - 1, last) + 1));
    }
  }
  return turn;
}

/// Items before were started before, so the first of them never waits: no deadlock, whatever the number of threads. Yields,
/// because ranks may share cores.
inline void wait_for(const std::int32_t* turn, std::int32_t expected, const Progress& progress) {
  for (int spins = 0; __atomic_load_n(turn, __ATOMIC_ACQUIRE) != expected; ++spins) {
    if (spins % 64 == 63) progress.call(progress.context);
    if (spins > 100) sched_yield();
  }
}

/// Adds the poison that packing took out of a row of q and dout to the keys of the item that it sees.
inline void poison_keys_of_row(const BackwardCall& call, std::int64_t head, std::int64_t row) {
  const auto& p = call.problem;
  const std::int64_t kv = call.item.kv_head, tile = row / bf16::kUnit, first = tile * bf16::kUnit;
  const auto add = [&](std::int64_t k, std::uint32_t rows) {
    if ((rows >> (row - first) & 1) == 0) return;
    for (std::int64_t d = 0; d < p.shape.width_qk; ++d) {
      const float value = static_cast<float>(p.q.data[row * p.q.row + head * p.q.head + d]);
      if (!(value - value == 0)) p.dk.data[k * p.dk.row + kv * p.dk.head + d] += value - value;
    }
    for (std::int64_t e = 0; e < p.shape.width_v; ++e) {
      const float value = static_cast<float>(p.dout.data[row * p.dout.row + head * p.dout.head + e]);
      if (!(value - value == 0)) p.dv.data[k * p.dv.row + kv * p.dv.head + e] += value;
    }
  };
  for_each_seen(call.item.tiles[tile], first, {call.item.first_key, call.item.first_key + call.item.keys}, add);
}

inline void poison_keys(const BackwardCall& call, std::int64_t head, const bf16::PackedQueries& queries) {
  for (std::int64_t block = 0; block * bf16::kBlock < call.problem.shape.query_rows; ++block) {
    if (!turn_at(call, block).mine) continue;  // may not be packed
    for (std::int64_t row = block * bf16::kBlock; row < smaller((block + 1) * bf16::kBlock, call.problem.shape.query_rows); ++row) {
      const bool alive = (queries.alive[row / bf16::kUnit] >> (row % bf16::kUnit) & 1) != 0;
      if (queries.poisoned[row] != 0 && alive) poison_keys_of_row(call, head, row);
    }
  }
}

/// Rows of dk or dv := or += factor times their sums.
inline void store_sums(const BackwardCall& call, const float* sums, std::int64_t width, float factor, const Strided<float>& to) {
  const std::int64_t columns = bf16::padded(width) / bf16::kUnit;
  for (std::int64_t key = 0; key < call.item.keys; ++key) {
    const std::int64_t block = key / bf16::kBlock, unit = key % bf16::kBlock / bf16::kUnit;
    float* row = to.data + (call.item.first_key + key) * to.row + call.item.kv_head * to.head;
    for (std::int64_t i = 0; i < width; i += kLanes) {
      const float* from = sums + ((block * columns + i / 32) * kBlockUnits + unit) * kUnitScores;
      const Vec sum = factor * load(score_row(from, i / 16 % 2, key % bf16::kUnit));
      store_some(row + i, call.problem.overwrite_dkdv ? sum : sum + load_some(row + i, width - i), width - i);
    }
  }
}

inline void backward_item(const BackwardProblem<bfloat16, float>& p, const bf16::BackwardItem& item) {
  const Unit::Session session;
  const AttentionShape& shape = p.shape;
  const bool capped = p.softcap > 0;
  Carver carver(item.scratch);
  const BackwardCall call{p,
                          item,
                          carve_backward(shape, carver),
                          qk_steps(shape),
                          v_steps(shape),
                          capped ? 1.0f : static_cast<float>(p.scale * static_cast<double>(kLog2E)),
                          capped ? static_cast<float>(p.softcap) * kLog2E : 0.0f,
                          capped ? static_cast<float>(p.scale / p.softcap) : 0.0f};
  const WeighTile weigh = weigh_tile_of(call.d, call.e);
  __builtin_memset(call.on.dk, 0, static_cast<std::size_t>(bf16::kBackwardItemKeys * call.d * 32) * sizeof(float));
  __builtin_memset(call.on.dv, 0, static_cast<std::size_t>(bf16::kBackwardItemKeys * call.e * 32) * sizeof(float));
  Pending pending(call.on.discard);
  Pacer pacer(item.progress);
  pack_item_keys(p, item, call.on.packed);
  const std::int64_t group = shape.heads / shape.kv_heads;
  bool any = false;
  for (std::int64_t member = 0; member < group; ++member) {
    const bf16::PackedQueries& queries = item.queries[member];
    for (std::int64_t query_block = 0; query_block * bf16::kBlock < shape.query_rows; ++query_block) {
      const Turn turn = turn_at(call, query_block);
      if (!turn.mine) continue;
      any = true;
      wait_for(queries.turns + query_block, turn.before, item.progress);
      if (turn.before == 0) pack_queries(p, item.kv_head * group + member, query_block, queries);
      for (std::int64_t block = 0; block * bf16::kBlock < item.keys; ++block) {
        backward_block(call, weigh, queries, query_block, block, pending, pacer);
      }
      if (turn.last) store_dq(p, item, item.kv_head * group + member, query_block, queries);
      __atomic_store_n(queries.turns + query_block, static_cast<std::int32_t>(item.first_key / bf16::kBackwardItemKeys + 1),
                       __ATOMIC_RELEASE);
    }
  }
  if (!any && !p.overwrite_dkdv) return;
  store_sums(call, call.on.dk, shape.width_qk, static_cast<float>(p.scale), p.dk);
  store_sums(call, call.on.dv, shape.width_v, 1.0f, p.dv);
  for (std::int64_t member = 0; member < group; ++member) poison_keys(call, item.kv_head * group + member, item.queries[member]);
}

}  // namespace
}  // namespace periplus::kernels::cpu
