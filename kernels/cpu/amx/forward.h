// Forward pass of one work item on tiles (algorithms.md 1.1). Included by tiles_<unit>.cpp after a unit.
//
// An item is up to 1,024 rows of one query head, in tiles of 32. For each range of 1,024 keys (512 KiB of packed keys and
// values for heads of 128, which come from the third-level cache once an item and then stay in the second), for each tile, for each block
// of 256 keys that the tile may see:
//   scores   S^T = K Q^T unit by unit; while the tile unit computes one, the vector unit turns the last into weights P^T;
//   sums     O^T += V^T P^T, 32 values at a time, over all units of the block; the first of these hides the last weights.
// The block is 256 keys long because sums are loaded and stored once a block, and no longer so that its weights (16 KiB),
// the sums (16) and the queries (8) stay in the first-level cache while keys and values stream past them.
#pragma once

#include <sched.h>

#include "kernels/cpu/amx/fetch.h"
#include "kernels/cpu/amx/state.h"

namespace periplus::kernels::cpu {
namespace {

constexpr std::int64_t kRangeKeys = 1024;
constexpr std::int64_t kUnitsPerBlock = amx::kBlock / amx::kUnit;
constexpr std::int64_t kBlocksPerRange = kRangeKeys / amx::kBlock;
constexpr std::int64_t kItemTiles = amx::kItemRows / amx::kUnit;

struct ForwardScratch {
  float* scores;      ///< [2][kUnitScores]
  bfloat16* weights;  ///< [kUnitsPerBlock][kUnitWeights]
  float* discard;     ///< [kUnitScores]
  QueryTile* tiles;   ///< [kItemTiles]
};

inline std::int64_t forward_scratch_bytes(const AttentionShape& shape) {
  const std::int64_t tile =
      static_cast<std::int64_t>(sizeof(QueryTile)) + amx::kUnit * (amx::padded(shape.width_qk) * 2 + amx::padded(shape.width_v) * 4);
  return 3 * kUnitScores * 4 + kUnitsPerBlock * kUnitWeights * 2 + kItemTiles * tile;
}

inline ForwardScratch carve_forward(const AttentionShape& shape, std::byte* scratch) {
  const auto take = [&](std::int64_t bytes) { return std::exchange(scratch, scratch + bytes); };
  ForwardScratch on;
  on.scores = reinterpret_cast<float*>(take(2 * kUnitScores * 4));
  on.weights = reinterpret_cast<bfloat16*>(take(kUnitsPerBlock * kUnitWeights * 2));
  on.discard = reinterpret_cast<float*>(take(kUnitScores * 4));
  on.tiles = reinterpret_cast<QueryTile*>(take(kItemTiles * static_cast<std::int64_t>(sizeof(QueryTile))));
  for (std::int64_t t = 0; t < kItemTiles; ++t) {
    on.tiles[t].queries = reinterpret_cast<bfloat16*>(take(amx::kUnit * amx::padded(shape.width_qk) * 2));
    on.tiles[t].sums = reinterpret_cast<float*>(take(amx::kUnit * amx::padded(shape.width_v) * 4));
  }
  return on;
}

/// What stays the same for all blocks of an item.
struct ForwardCall {
  const AttentionShape& shape;
  const amx::PackedKeys& packed;
  ForwardScratch on;
  std::int64_t value_pairs;  ///< E / 32
  float cap, cap_scale;      ///< cap in base 2 (0: none); scores times cap_scale go into tanh.
};

/// Units [begin, end) of a block, as seen by one tile.
struct BlockPlace {
  std::int64_t block, begin, end;
  std::int64_t q0, q1;
  Fetch* fetch;  ///< For later.
};

/// What the vector unit does beside products of weights and values.
class ValueWork {
 public:
  ValueWork(Fetch& fetch, WeightSums& sums) : fetch_(fetch), sums_(sums) {}
  template <int I>
  [[gnu::always_inline]] void operator()(std::int64_t, Product<I>) {
    fetch_.some();
    sums_();
  }

 private:
  Fetch& fetch_;
  WeightSums& sums_;
};

/// Everything summed so far for a tile, scaled by `factors`; weights of the first `units` units of this block too.
[[gnu::noinline]] inline void rescale(const ForwardCall& call, QueryTile& tile, const Factors& factors, std::int64_t units) {
  for (std::int64_t i = 0; i < call.value_pairs * 4; ++i) {
    for (std::int64_t row = 0; row < 16; ++row) {
      float* at = tile.sums + i * 256 + row * 16;
      // A fresh row's factor is 0 and so are its sums.
      store(at, load(at) * factors.of[i % 2]);
    }
  }
  for (std::int64_t i = 0; i < units * 2; ++i) {
    for (std::int64_t row = 0; row < 16; ++row) {
      bfloat16* at = call.on.weights + i * kTile + row * 32;
      const Words both = Words(load_bits(at));
      const Vec factor = factors.of[i % 2];
      store_bits(at, Vec(Unit::pair(Vec(both << 16) * factor, Vec(both & 0xffff0000u) * factor)));
    }
  }
}

/// Weights of a unit whose sums were too large, or that is masked: nothing runs meanwhile.
inline void soften_alone(const ForwardCall& call, QueryTile& tile, const float* scores, std::int64_t unit) {
  bfloat16* weights = call.on.weights + unit * kUnitWeights;
  soften(scores, tile.running, weights);
  if (settled(tile.running)) return;
  rescale(call, tile, raise_top(scores, tile.running), unit);
  soften(scores, tile.running, weights);
  settle(tile.running);
}

inline UnitPlace place_of(const ForwardCall& call, const BlockPlace& place, std::int64_t unit) {
  const std::int64_t k0 = call.packed.first_key + place.block * amx::kBlock + (place.begin + unit) * amx::kUnit;
  return {place.q0, place.q1, k0, smaller(k0 + amx::kUnit, call.packed.keys_end)};
}

/// Softcap and mask.
inline void prepare(const ForwardCall& call, const amx::TileBands& bands, const UnitPlace& at, float* scores) {
  if (call.cap > 0) {
    for (std::int64_t i = 0; i < kUnitScores; i += kLanes) store(scores + i, call.cap * tanh(load(scores + i) * call.cap_scale));
  }
  if (!wholly_allowed(bands, at)) hide(bands, at, scores);
}

/// One tile against some units of one block. `Steps` is D / 32.
template <int Steps>
void attend_block(const ForwardCall& call, QueryTile& tile, const amx::TileBands& bands, const BlockPlace& place) {
  // Half of the products work for each half of the rows.
  constexpr std::int64_t kPairsPerPart = (kUnitPairs + 2 * Steps - 1) / (2 * Steps);
  const std::int64_t units = place.end - place.begin;
  const std::int64_t slot = call.packed.slots[place.block] * call.packed.block_stride;
  const bfloat16* keys = call.packed.keys + slot + place.begin * Steps * 2 * kTile;
  const bfloat16* values = call.packed.values + slot + place.begin * 2 * kTile;
  const auto scores_of = [&](std::int64_t unit) __attribute__((always_inline)) { return call.on.scores + unit % 2 * kUnitScores; };
  const auto weights_of = [&](std::int64_t unit) __attribute__((always_inline)) { return call.on.weights + unit * kUnitWeights; };
  Pending pending(call.on.discard);
  Running running = tile.running;
  const auto is_plain = [&](std::int64_t unit) __attribute__((always_inline)) {
    return call.cap == 0 && wholly_allowed(bands, place_of(call, place, unit));
  };
  const auto alone = [&](std::int64_t unit) __attribute__((always_inline)) {
    tile.running = running;
    soften_alone(call, tile, scores_of(unit), unit);
    running = tile.running;
  };
  const auto repair = [&](std::int64_t unit) __attribute__((always_inline)) {
    if (settled(running)) return false;
    alone(unit);
    return true;
  };

  pending.multiply<false>({keys, tile.queries, 2 * kTile, 2 * kTile}, Steps, scores_of(0));
  for (std::int64_t unit = 1; unit < units; ++unit) {
    const Pending::Operands next{keys + unit * Steps * 2 * kTile, tile.queries, 2 * kTile, 2 * kTile};
    const std::int64_t last = unit - 1;
    if (!is_plain(last)) {
      pending.multiply<false>(next, Steps, scores_of(unit));
      prepare(call, bands, place_of(call, place, last), scores_of(last));
      alone(last);
      continue;
    }
    PiecewiseSoftmax<kPairsPerPart> softmax(scores_of(last), running, weights_of(last));
    pending.multiply<false>(next, Steps, scores_of(unit), softmax);
    softmax.finish(running);
    repair(last);
  }

  const std::int64_t last = units - 1;
  const Pending::Operands first{values, call.on.weights, 2 * kTile, kUnitWeights};
  // The weights of the last unit are needed by the last step only.
  if (units >= 5 && is_plain(last)) {
    PiecewiseSoftmax<2> softmax(scores_of(last), running, weights_of(last));
    pending.multiply<true>(first, units, tile.sums, softmax);
    softmax.finish(running);
    if (repair(last)) {
      pending.drop();
      pending.multiply<true>(first, units, tile.sums);
    }
  } else {
    pending.flush();
    prepare(call, bands, place_of(call, place, last), scores_of(last));
    alone(last);
    Unit::fence();
    pending.multiply<true>(first, units, tile.sums);
  }
  WeightSums sums(call.on.weights, units);
  ValueWork work(*place.fetch, sums);
  for (std::int64_t pair = 1; pair < call.value_pairs; ++pair) {
    const Pending::Operands operands{values + pair * kUnitsPerBlock * 2 * kTile, call.on.weights, 2 * kTile, kUnitWeights};
    pending.multiply<true>(operands, units, tile.sums + pair * kUnitScores, work);
  }
  sums.finish(running);
  pending.flush();
  tile.running = running;
}

using AttendBlock = void (*)(const ForwardCall&, QueryTile&, const amx::TileBands&, const BlockPlace&);
constexpr AttendBlock kAttendBlock[] = {attend_block<1>, attend_block<2>, attend_block<3>, attend_block<4>,
                                        attend_block<5>, attend_block<6>, attend_block<7>, attend_block<8>};

/// Packs one block of keys and values.
inline void pack_block(const ForwardProblem<bfloat16, float>& p, std::int64_t block, const amx::PackedKeys& packed) {
  const std::int64_t steps = amx::padded(p.shape.width_qk) / amx::kUnit, value_pairs = amx::padded(p.shape.width_v) / amx::kUnit;
  const Strided<const bfloat16> k{p.k.data + packed.kv_head * p.k.head, p.k.row, 0}, v{p.v.data + packed.kv_head * p.v.head, p.v.row, 0};
  const std::int64_t slot = packed.slots[block] * packed.block_stride;
  __builtin_memset(packed.poisoned + block * amx::kBlock, 0, static_cast<std::size_t>(amx::kBlock));
  for (std::int64_t unit = 0; unit < kUnitsPerBlock; ++unit) {
    const std::int64_t local = block * amx::kBlock + unit * amx::kUnit, key = packed.first_key + local;
    const std::int64_t keys = larger(0, smaller(amx::kUnit, packed.keys_end - key));
    pack_rows_as_a(k.data + key * k.row, k.row, keys, p.shape.width_qk, steps, packed.keys + slot + unit * steps * 2 * kTile);
    const bool bad = pack_rows_transposed(v.data + key * v.row, v.row, keys, p.shape.width_v, value_pairs, kUnitsPerBlock * 2 * kTile,
                                          packed.values + slot + unit * 2 * kTile, packed.poisoned + local);
    if (bad) __atomic_store_n(packed.any_poisoned, std::uint8_t{1}, __ATOMIC_RELAXED);
  }
}

/// Whether nobody has begun to pack the block of a key.
inline bool is_unpacked(const amx::PackedKeys& packed, std::int64_t key) {
  return __atomic_load_n(packed.blocks + (key - packed.first_key) / amx::kBlock, __ATOMIC_RELAXED) == amx::kUnpacked;
}

/// Who changes the list of free slots.
class SpareSlots {
 public:
  explicit SpareSlots(const amx::PackedKeys& packed) : spare_(packed.spare) {
    while (__atomic_exchange_n(spare_, std::int32_t{1}, __ATOMIC_ACQUIRE) != 0) sched_yield();
  }
  ~SpareSlots() { __atomic_store_n(spare_, std::int32_t{0}, __ATOMIC_RELEASE); }
  SpareSlots(const SpareSlots&) = delete;
  SpareSlots& operator=(const SpareSlots&) = delete;

  std::int32_t take() { return spare_[2 + --spare_[1]]; }
  void give(std::int32_t slot) { spare_[2 + spare_[1]++] = slot; }

 private:
  std::int32_t* spare_;
};

/// Packs those blocks of `range` that the item sees and nobody has begun.
inline void pack_range(const ForwardProblem<bfloat16, float>& p, const amx::ForwardItem& item, KeyRange range) {
  const amx::PackedKeys& packed = item.packed;
  for (std::int64_t i = 0; i < item.seen_count; ++i) {
    const std::int64_t block = item.seen[i], key = packed.first_key + block * amx::kBlock;
    if (key < range.begin || key >= range.end || !is_unpacked(packed, key)) continue;
    std::int32_t expected = amx::kUnpacked;
    if (!__atomic_compare_exchange_n(packed.blocks + block, &expected, std::int32_t{amx::kBeingPacked}, false, __ATOMIC_RELAXED,
                                     __ATOMIC_RELAXED)) {
      continue;
    }
    __atomic_store_n(packed.slots + block, SpareSlots(packed).take(), __ATOMIC_RELAXED);
    pack_block(p, block, packed);
    __atomic_store_n(packed.blocks + block, std::int32_t{amx::kPacked}, __ATOMIC_RELEASE);
    item.progress();
  }
}

/// Frees the slots of blocks that nobody will need again.
inline void release_blocks(const amx::ForwardItem& item) {
  const amx::PackedKeys& packed = item.packed;
  for (std::int64_t i = 0; i < item.seen_count; ++i) {
    const std::int64_t block = item.seen[i];
    if (__atomic_sub_fetch(packed.uses + block, 1, __ATOMIC_ACQ_REL) == 0) SpareSlots(packed).give(packed.slots[block]);
  }
}

/// Another thread may still be at it: it waits for nobody.
inline void wait_until_packed(const amx::ForwardItem& item, std::int64_t block) {
  for (int spins = 0; __atomic_load_n(item.packed.blocks + block, __ATOMIC_ACQUIRE) != amx::kPacked; ++spins) {
    if (spins % 64 == 63) item.progress();
    if (spins > 100) sched_yield();
  }
}

inline ForwardCall forward_call(const ForwardProblem<bfloat16, float>& p, const amx::ForwardItem& item) {
  const bool capped = p.softcap > 0;
  return {p.shape,
          item.packed,
          carve_forward(p.shape, item.scratch),
          amx::padded(p.shape.width_v) / amx::kUnit,
          capped ? static_cast<float>(p.softcap) * kLog2E : 0.0f,
          capped ? static_cast<float>(p.scale / p.softcap) : 0.0f};
}

/// One item at work.
struct ItemPlace {
  std::int64_t tiles;
  KeyRange seen[kItemTiles];  ///< Keys that each tile sees.
  KeyRange range;             ///< Of keys, at work now.
  KeyRange all;
};

inline void fetch_slot(const amx::PackedKeys& packed, std::int64_t slot, KeyRange keys, Fetch& fetch) {
  const std::int64_t each = packed.block_stride / amx::kBlock, local = (keys.begin - packed.first_key) % amx::kBlock;
  fetch.add(packed.keys + slot * packed.block_stride + local * each, 0, 1, (keys.end - keys.begin) * each * 2);
}
/// The slot that a block is likely to get when `ahead` others have been packed; -1: none.
inline std::int64_t next_slot(const amx::PackedKeys& packed, std::int64_t ahead) {
  const std::int64_t spare = __atomic_load_n(packed.spare + 1, __ATOMIC_RELAXED) - 1 - ahead;
  return spare < 0 ? -1 : __atomic_load_n(packed.spare + 2 + spare, __ATOMIC_RELAXED);
}

/// Keys [begin, end) of a tile's share, packed or still to be packed `ahead` blocks on.
inline void fetch_keys(const ForwardProblem<bfloat16, float>& p, const amx::PackedKeys& packed, KeyRange keys, bool if_packed,
                       std::int64_t ahead, Fetch& fetch) {
  keys = {larger(keys.begin, packed.first_key), smaller(keys.end, packed.keys_end)};
  if (keys.begin >= keys.end) return;
  if (is_unpacked(packed, keys.begin)) {
    const std::int64_t count = keys.end - keys.begin;
    fetch.add(p.k.data + keys.begin * p.k.row + packed.kv_head * p.k.head, p.k.row * 2, count, p.shape.width_qk * 2);
    fetch.add(p.v.data + keys.begin * p.v.row + packed.kv_head * p.v.head, p.v.row * 2, count, p.shape.width_v * 2);
    // What an item leaves behind for the next one is in the cache.
    if (const std::int64_t slot = next_slot(packed, ahead); if_packed && slot >= 0) fetch_slot(packed, slot, keys, fetch);
  } else if (if_packed) {
    const std::int64_t local = keys.begin - packed.first_key;
    fetch_slot(packed, __atomic_load_n(packed.slots + local / amx::kBlock, __ATOMIC_RELAXED), keys, fetch);
  }
}

inline void fetch_rows(const ForwardProblem<bfloat16, float>& p, const amx::ForwardItem& item, std::int64_t t, bool queries, bool out,
                       Fetch& fetch) {
  const std::int64_t first = item.first_row + t * amx::kUnit, rows = smaller(amx::kUnit, item.first_row + item.rows - first);
  if (queries) fetch.add(p.q.data + first * p.q.row + item.head * p.q.head, p.q.row * 2, rows, p.shape.width_qk * 2);
  if (out) fetch.add(p.out.data + first * p.out.row + item.head * p.out.head, p.out.row * 4, rows, p.shape.width_v * 4);
}

/// What tile `t` fetches while it is at a range: its own result, if it is stored after this range; what the next tile loads; and its
/// share of the keys of the next range, or of the next item.
inline void fetch_ahead(const ForwardProblem<bfloat16, float>& p, const amx::ForwardItem& item, const ItemPlace& at, std::int64_t t,
                        Fetch& fetch) {
  if (at.seen[t].end <= at.range.end) fetch_rows(p, item, t, false, true, fetch);
  if (t + 1 < at.tiles && at.seen[t + 1].begin < at.seen[t + 1].end && at.seen[t + 1].begin >= at.range.begin) {
    fetch_rows(p, item, t + 1, true, !item.overwrite, fetch);
  }
  const bool more = at.range.end < at.all.end;
  const std::int64_t share = (more ? kRangeKeys : item.next.rows) / at.tiles;
  const std::int64_t first = (more ? at.range.end : item.next.first_row) + t * share;
  fetch_keys(p, more ? item.packed : item.next.packed, {first, first + share}, more, t * share / amx::kBlock, fetch);
}

/// Tile `t` against the blocks of the range that it sees.
inline void attend_range(const ForwardProblem<bfloat16, float>& p, const amx::ForwardItem& item, const ForwardCall& call,
                         const ItemPlace& at, std::int64_t t, KeyRange range, Pacer& pacer) {
  const AttendBlock attend = kAttendBlock[amx::padded(p.shape.width_qk) / amx::kUnit - 1];
  const double flop = 2.0 * amx::kUnit * amx::kBlock * static_cast<double>(p.shape.width_qk + p.shape.width_v);
  const std::int64_t first = item.packed.first_key, q0 = item.first_row + t * amx::kUnit;
  Fetch fetch;
  fetch_ahead(p, item, at, t, fetch);
  fetch.start((range.end - range.begin + amx::kUnit - 1) / amx::kUnit * 4 * (call.value_pairs - 1));
  for (std::int64_t key = first + round_down(range.begin - first, amx::kBlock); key < range.end; key += amx::kBlock) {
    const KeyRange part = keys_seen(item.tiles[t], key, key + amx::kBlock);
    if (part.begin >= part.end) continue;
    const std::int64_t block = (key - first) / amx::kBlock;
    wait_until_packed(item, block);
    attend(call, call.on.tiles[t], item.tiles[t],
           {block, (part.begin - key) / amx::kUnit, (part.end - key + amx::kUnit - 1) / amx::kUnit, q0,
            smaller(q0 + amx::kUnit, item.first_row + item.rows), &fetch});
    pacer.did(flop);
  }
}

/// algorithms.md 1.1 for one item: packs its queries, and keys that nobody has packed before, and folds the keys into its state. A tile
/// is loaded before its first range and stored after its last, so that its memory traffic runs beside the products of others.
inline void forward_item(const ForwardProblem<bfloat16, float>& p, const amx::ForwardItem& item) {
  const Unit::Session session;
  const ForwardCall call = forward_call(p, item);
  const float scale = p.softcap > 0 ? 1.0f : static_cast<float>(p.scale * static_cast<double>(kLog2E));
  const std::int64_t first = item.packed.first_key;
  ItemPlace at;
  at.tiles = (item.rows + amx::kUnit - 1) / amx::kUnit;
  at.all = {item.packed.keys_end, first};
  for (std::int64_t t = 0; t < at.tiles; ++t) {
    at.seen[t] = keys_seen(item.tiles[t], first, item.packed.keys_end);
    at.all = {smaller(at.all.begin, at.seen[t].begin), larger(at.all.end, at.seen[t].end)};
    if (at.seen[t].begin < at.seen[t].end || !item.overwrite) continue;
    load_tile(p, item, t, scale, call.on.tiles[t]);
    store_tile(p, item, t, call.on.tiles[t]);
  }
  Pacer pacer(item.progress);
  for (std::int64_t range = first + round_down(at.all.begin - first, kRangeKeys); range < at.all.end; range += kRangeKeys) {
    at.range = {range, smaller(range + kRangeKeys, item.packed.keys_end)};
    pack_range(p, item, at.range);
    for (std::int64_t t = 0; t < at.tiles; ++t) {
      const KeyRange part{larger(range, at.seen[t].begin), smaller(at.range.end, at.seen[t].end)};
      if (part.begin >= part.end) continue;
      if (at.seen[t].begin >= range) load_tile(p, item, t, scale, call.on.tiles[t]);
      attend_range(p, item, call, at, t, part, pacer);
      if (at.seen[t].end <= at.range.end) store_tile(p, item, t, call.on.tiles[t]);
    }
  }
  release_blocks(item);
}

}  // namespace
}  // namespace periplus::kernels::cpu
