// Forward pass of one work item on tiles (algorithms.md 1.1). Included by level_<unit>.cpp after a unit.
//
// An item is up to 1,024 rows of one query head, in tiles of 32. For each range of 1,024 keys (512 KiB of packed keys and
// values for heads of 128, which come from the third-level cache once an item and then stay in the second), for each tile, it takes the
// units that the tile may see by runs (forward_run.h).
#pragma once

#include <sched.h>

#include "kernels/cpu/bf16/forward_run.h"
#include "kernels/cpu/carver.h"

namespace periplus::kernels::cpu {
namespace {

constexpr std::int64_t kRangeKeys = 1024;
constexpr std::int64_t kItemTiles = bf16::kItemRows / bf16::kUnit;

inline ForwardScratch carve_forward(const AttentionShape& shape, Carver& carver) {
  ForwardScratch on;
  on.scores = carver.take(2 * kUnitScores);
  on.weights = carver.take<bfloat16>(kRunUnits * kUnitWeights);
  on.discard = carver.take(kUnitScores);
  on.tiles = carver.take<QueryTile>(kItemTiles);
  for (std::int64_t t = 0; t < kItemTiles; ++t) {
    bfloat16* const queries = carver.take<bfloat16>(bf16::kUnit * bf16::padded(shape.width_qk));
    float* const sums = carver.take(bf16::kUnit * bf16::padded(shape.width_v));
    if (on.tiles == nullptr) continue;
    on.tiles[t].queries = queries;
    on.tiles[t].sums = sums;
  }
  return on;
}

inline std::int64_t forward_scratch_bytes(const AttentionShape& shape) {
  Carver carver(nullptr);
  carve_forward(shape, carver);
  return carver.bytes();
}

/// Packs one block of keys and values.
inline void pack_block(const ForwardProblem<bfloat16, float>& p, std::int64_t block, const bf16::PackedKeys& packed) {
  const std::int64_t steps = bf16::padded(p.shape.width_qk) / bf16::kUnit, value_pairs = bf16::padded(p.shape.width_v) / bf16::kUnit;
  const Strided<const bfloat16> k{p.k.data + packed.kv_head * p.k.head, p.k.row, 0}, v{p.v.data + packed.kv_head * p.v.head, p.v.row, 0};
  const std::int64_t slot = packed.slots[block] * packed.block_stride;
  __builtin_memset(packed.poisoned + block * bf16::kBlock, 0, static_cast<std::size_t>(bf16::kBlock));
  for (std::int64_t unit = 0; unit < kUnitsPerBlock; ++unit) {
    const std::int64_t local = block * bf16::kBlock + unit * bf16::kUnit, key = packed.first_key + local;
    const std::int64_t keys = larger(0, smaller(bf16::kUnit, packed.keys_end - key));
    pack_rows_as_a(k.data + key * k.row, k.row, keys, p.shape.width_qk, steps, packed.keys + slot + unit * steps * 2 * kTile);
    const bool bad = pack_rows_transposed(v.data + key * v.row, v.row, keys, p.shape.width_v, value_pairs, kUnitsPerBlock * 2 * kTile,
                                          packed.values + slot + unit * 2 * kTile, packed.poisoned + local);
    if (bad) __atomic_store_n(packed.any_poisoned, std::uint8_t{1}, __ATOMIC_RELAXED);
  }
}

/// Whether nobody has begun to pack the block of a key.
inline bool is_unpacked(const bf16::PackedKeys& packed, std::int64_t key) {
  return __atomic_load_n(packed.blocks + (key - packed.first_key) / bf16::kBlock, __ATOMIC_RELAXED) == bf16::kUnpacked;
}

/// Who changes the list of free slots.
class SpareSlots {
 public:
  explicit SpareSlots(const bf16::PackedKeys& packed) : spare_(packed.spare) {
    while (__atomic_exchange_n(spare_, std::int32_t{1}, __ATOMIC_ACQUIRE) != 0) sched_yield();
  }
  ~SpareSlots() { __atomic_store_n(spare_, std::int32_t{0}, __ATOMIC_RELEASE); }
  SpareSlots(const SpareSlots&) = delete;
  SpareSlots& operator=(const SpareSlots&) = delete;

  std::int32_t take() {
    set(1, spare_[1] - 1);
    return spare_[2 + spare_[1]];
  }
  void give(std::int32_t slot) {
    set(2 + spare_[1], slot);
    set(1, spare_[1] + 1);
  }

 private:
  // next_slot() looks without the lock.
  void set(std::int64_t i, std::int32_t value) { __atomic_store_n(spare_ + i, value, __ATOMIC_RELAXED); }

  std::int32_t* spare_;
};

/// Packs those blocks of `range` that the item sees and nobody has begun.
inline void pack_range(const ForwardProblem<bfloat16, float>& p, const bf16::ForwardItem& item, KeyRange range) {
  const bf16::PackedKeys& packed = item.packed;
  for (std::int64_t i = 0; i < item.seen_count; ++i) {
    const std::int64_t block = item.seen[i], key = packed.first_key + block * bf16::kBlock;
    if (key < range.begin || key >= range.end || !is_unpacked(packed, key)) continue;
    std::int32_t expected = bf16::kUnpacked;
    if (!__atomic_compare_exchange_n(packed.blocks + block, &expected, std::int32_t{bf16::kBeingPacked}, false, __ATOMIC_RELAXED,
                                     __ATOMIC_RELAXED)) {
      continue;
    }
    __atomic_store_n(packed.slots + block, SpareSlots(packed).take(), __ATOMIC_RELAXED);
    pack_block(p, block, packed);
    __atomic_store_n(packed.blocks + block, std::int32_t{bf16::kPacked}, __ATOMIC_RELEASE);
    item.progress();
  }
}

/// Frees the slots of blocks that nobody will need again.
inline void release_blocks(const bf16::ForwardItem& item) {
  const bf16::PackedKeys& packed = item.packed;
  for (std::int64_t i = 0; i < item.seen_count; ++i) {
    const std::int64_t block = item.seen[i];
    if (__atomic_sub_fetch(packed.uses + block, 1, __ATOMIC_ACQ_REL) == 0) SpareSlots(packed).give(packed.slots[block]);
  }
}

/// Another thread may still be at it: it waits for nobody.
inline void wait_until_packed(const bf16::ForwardItem& item, std::int64_t block) {
  for (int spins = 0; __atomic_load_n(item.packed.blocks + block, __ATOMIC_ACQUIRE) != bf16::kPacked; ++spins) {
    if (spins % 64 == 63) item.progress();
    if (spins > 100) sched_yield();
  }
}

inline ForwardCall forward_call(const ForwardProblem<bfloat16, float>& p, const bf16::ForwardItem& item) {
  const bool capped = p.softcap > 0;
  Carver carver(item.scratch);
  return {p.shape,
          item.packed,
          carve_forward(p.shape, carver),
          bf16::padded(p.shape.width_v) / bf16::kUnit,
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

inline void fetch_slot(const bf16::PackedKeys& packed, std::int64_t slot, KeyRange keys, Fetch& fetch) {
  const std::int64_t each = packed.block_stride / bf16::kBlock, local = (keys.begin - packed.first_key) % bf16::kBlock;
  fetch.add(packed.keys + slot * packed.block_stride + local * each, 0, 1, (keys.end - keys.begin) * each * 2);
}
/// The slot that a block is likely to get when `ahead` others have been packed; -1: none.
inline std::int64_t next_slot(const bf16::PackedKeys& packed, std::int64_t ahead) {
  const std::int64_t spare = __atomic_load_n(packed.spare + 1, __ATOMIC_RELAXED) - 1 - ahead;
  return spare < 0 ? -1 : __atomic_load_n(packed.spare + 2 + spare, __ATOMIC_RELAXED);
}

/// Keys [begin, end) of a tile's share, packed or still to be packed `ahead` blocks on.
inline void fetch_keys(const ForwardProblem<bfloat16, float>& p, const bf16::PackedKeys& packed, KeyRange keys, bool if_packed,
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
    fetch_slot(packed, __atomic_load_n(packed.slots + local / bf16::kBlock, __ATOMIC_RELAXED), keys, fetch);
  }
}

inline void fetch_rows(const ForwardProblem<bfloat16, float>& p, const bf16::ForwardItem& item, std::int64_t t, bool queries, bool out,
                       Fetch& fetch) {
  const std::int64_t first = item.first_row + t * bf16::kUnit, rows = smaller(bf16::kUnit, item.first_row + item.rows - first);
  if (queries) fetch.add(p.q.data + first * p.q.row + item.head * p.q.head, p.q.row * 2, rows, p.shape.width_qk * 2);
  if (out) fetch.add(p.out.data + first * p.out.row + item.head * p.out.head, p.out.row * 4, rows, p.shape.width_v * 4);
}

/// What tile `t` fetches while it is at a range: its own result, if it is stored after this range; what the next tile loads; and its
/// share of the keys of the next range, or of the next item.
inline void fetch_ahead(const ForwardProblem<bfloat16, float>& p, const bf16::ForwardItem& item, const ItemPlace& at, std::int64_t t,
                        Fetch& fetch) {
  if (at.seen[t].end <= at.range.end) fetch_rows(p, item, t, false, true, fetch);
  if (t + 1 < at.tiles && at.seen[t + 1].begin < at.seen[t + 1].end && at.seen[t + 1].begin >= at.range.begin) {
    fetch_rows(p, item, t + 1, true, !item.overwrite, fetch);
  }
  const bool more = at.range.end < at.all.end;
  const std::int64_t share = (more ? kRangeKeys : item.next.rows) / at.tiles;
  const std::int64_t first = (more ? at.range.end : item.next.first_row) + t * share;
  fetch_keys(p, more ? item.packed : item.next.packed, {first, first + share}, more, t * share / bf16::kBlock, fetch);
}

/// Hands out the runs of a range, tile by tile, those of a tile of even length. A tile is loaded just before its first.
class RangeRuns {
 public:
  RangeRuns(const ForwardProblem<bfloat16, float>& p, const bf16::ForwardItem& item, const ForwardCall& call, const ItemPlace& at,
            float scale)
      : p_(p), item_(item), call_(call), at_(at), scale_(scale) {}

  /// False: there are no more.
  bool next(TileRun& run) {
    while (units_ == 0) {
      if (tile_ + 1 == at_.tiles) return false;
      start(++tile_);
    }
    const std::int64_t q0 = item_.first_row + tile_ * bf16::kUnit, count = (units_ + runs_ - 1) / runs_;
    run = {tile_, item_.tiles[tile_], q0,     smaller(q0 + bf16::kUnit, item_.first_row + item_.rows), first_, count,
           adds_, units_ == count,    &fetch_};
    adds_ = true;
    first_ += count;
    units_ -= count;
    --runs_;
    return true;
  }

 private:
  void start(std::int64_t t) {
    const KeyRange seen{larger(at_.range.begin, at_.seen[t].begin), smaller(at_.range.end, at_.seen[t].end)};
    if (seen.begin >= seen.end) return;
    const bool first_range = at_.seen[t].begin >= at_.range.begin;
    if (first_range) load_tile(p_, item_, t, scale_, call_.on.tiles[t]);
    adds_ = !first_range || !item_.overwrite;
    const std::int64_t begin = seen.begin - item_.packed.first_key, end = seen.end - item_.packed.first_key;
    for (std::int64_t block = begin / bf16::kBlock; block * bf16::kBlock < end; ++block) wait_until_packed(item_, block);
    first_ = begin / bf16::kUnit;
    units_ = (end + bf16::kUnit - 1) / bf16::kUnit - first_;
    runs_ = (units_ + kRunUnits - 1) / kRunUnits;
    fetch_ = Fetch();
    fetch_ahead(p_, item_, at_, t, fetch_);
    fetch_.start(units_ * 4 * (call_.value_pairs - 1));
  }

  const ForwardProblem<bfloat16, float>& p_;
  const bf16::ForwardItem& item_;
  const ForwardCall& call_;
  const ItemPlace& at_;
  float scale_;
  std::int64_t tile_ = -1, first_ = 0, units_ = 0, runs_ = 0;
  bool adds_ = false;
  Fetch fetch_;
};

/// The tiles of the item against a range.
inline void attend_range(const ForwardProblem<bfloat16, float>& p, const bf16::ForwardItem& item, const ForwardCall& call,
                         const ItemPlace& at, float scale, Pacer& pacer) {
  const AttendRun attend = kAttendRun[bf16::padded(p.shape.width_qk) / bf16::kUnit - 1];
  const double flop = 2.0 * bf16::kUnit * bf16::kUnit * static_cast<double>(p.shape.width_qk + p.shape.width_v);
  RangeRuns runs(p, item, call, at, scale);
  Pending pending(call.on.discard);
  TileRun run;
  while (runs.next(run)) {
    attend(call, pending, run);
    pacer.did(flop * static_cast<double>(run.units));
    if (!run.last) continue;
    pending.flush();
    if (at.seen[run.tile].end <= at.range.end) store_tile(p, item, run.tile, call.on.tiles[run.tile]);
  }
}

/// algorithms.md 1.1 for one item: packs its queries, and keys that nobody has packed before, and folds the keys into its state. A tile
/// is loaded before its first range and stored after its last, so that its memory traffic runs beside the products of others.
inline void forward_item(const ForwardProblem<bfloat16, float>& p, const bf16::ForwardItem& item) {
  const Unit::Session session;
  const ForwardCall call = forward_call(p, item);
  const float scale = p.softcap > 0 ? 1.0f : static_cast<float>(p.scale * static_cast<double>(kLog2E));
  const std::int64_t first = item.packed.first_key;
  ItemPlace at;
  at.tiles = (item.rows + bf16::kUnit - 1) / bf16::kUnit;
  at.all = {item.packed.keys_end, first};
  for (std::int64_t t = 0; t < at.tiles; ++t) {
    at.seen[t] = keys_seen(item.tiles[t], first, item.packed.keys_end);
    at.all = {smaller(at.all.begin, at.seen[t].begin), larger(at.all.end, at.seen[t].end)};
    if (at.seen[t].begin < at.seen[t].end || !item.overwrite) continue;
    load_tile(p, item, t, scale, call.on.tiles[t]);
    __builtin_memset(call.on.tiles[t].sums, 0, static_cast<std::size_t>(call.value_pairs * kUnitScores) * sizeof(float));
    store_tile(p, item, t, call.on.tiles[t]);
  }
  Pacer pacer(item.progress);
  for (std::int64_t range = first + round_down(at.all.begin - first, kRangeKeys); range < at.all.end; range += kRangeKeys) {
    at.range = {range, smaller(range + kRangeKeys, item.packed.keys_end)};
    pack_range(p, item, at.range);
    attend_range(p, item, call, at, scale, pacer);
  }
  release_blocks(item);
}

}  // namespace
}  // namespace periplus::kernels::cpu
