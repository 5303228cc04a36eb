// Forward pass of one work item on tiles (algorithms.md 1.1). Included by level_<unit>.cpp after a unit.
//
// An item is up to 1,024 rows of one query head, in tiles of 32. For each range of 1,024 keys (512 KiB of packed keys and
// values for heads of 128, which come from the third-level cache once an item and then stay in the second), for each tile, it takes the
// units that the tile may see by runs (forward_run.h).
#pragma once

#include "kernels/cpu/bf16/forward_run.h"

namespace periplus::kernels::cpu {
namespace {

constexpr std::int64_t kRangeKeys = 1024;
constexpr std::int64_t kItemTiles = bf16::kItemRows / bf16::kUnit;

inline std::int64_t forward_scratch_bytes(const AttentionShape& shape) {
  const std::int64_t tile =
      static_cast<std::int64_t>(sizeof(QueryTile)) + bf16::kUnit * (bf16::padded(shape.width_qk) * 2 + bf16::padded(shape.width_v) * 4);
  return 3 * kUnitScores * 4 + kRunUnits * kUnitWeights * 2 + kItemTiles * tile;
}

inline ForwardScratch carve_forward(const AttentionShape& shape, std::byte* scratch) {
  const auto take = [&](std::int64_t bytes) { return std::exchange(scratch, scratch + bytes); };
  ForwardScratch on;
  on.scores = reinterpret_cast<float*>(take(2 * kUnitScores * 4));
  on.weights = reinterpret_cast<bfloat16*>(take(kRunUnits * kUnitWeights * 2));
  on.discard = reinterpret_cast<float*>(take(kUnitScores * 4));
  on.tiles = reinterpret_cast<QueryTile*>(take(kItemTiles * static_cast<std::int64_t>(sizeof(QueryTile))));
  for (std::int64_t t = 0; t < kItemTiles; ++t) {
    on.tiles[t].queries = reinterpret_cast<bfloat16*>(take(bf16::kUnit * bf16::padded(shape.width_qk) * 2));
    on.tiles[t].sums = reinterpret_cast<float*>(take(bf16::kUnit * bf16::padded(shape.width_v) * 4));
  }
  return on;
}

inline ForwardCall forward_call(const ForwardProblem<bfloat16, float>& p, const bf16::ForwardItem& item) {
  const bool capped = p.softcap > 0;
  return {p.shape,
          item.packed,
          carve_forward(p.shape, item.scratch),
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
                       std::int64_t ahead, const BlockPacking& packing, Fetch& fetch) {
  keys = {larger(keys.begin, packed.first_key), smaller(keys.end, packed.keys_end)};
  if (keys.begin >= keys.end) return;
  const std::int64_t block = (keys.begin - packed.first_key) / bf16::kBlock;
  const bool begun = Unit::kTilesRunBeside && packing.is_at(packed, block);
  if (begun || is_unpacked(packed, keys.begin)) {
    const std::int64_t count = keys.end - keys.begin;
    fetch.add(p.k.data + keys.begin * p.k.row + packed.kv_head * p.k.head, p.k.row * 2, count, p.shape.width_qk * 2);
    fetch.add(p.v.data + keys.begin * p.v.row + packed.kv_head * p.v.head, p.v.row * 2, count, p.shape.width_v * 2);
    // What an item leaves behind for the next one is in the cache.
    const std::int64_t slot = begun ? packed.slots[block] : next_slot(packed, ahead - packing.begun());
    if (if_packed && slot >= 0) fetch_slot(packed, slot, keys, fetch);
  } else if (if_packed) {
    fetch_slot(packed, __atomic_load_n(packed.slots + block, __ATOMIC_RELAXED), keys, fetch);
  }
}

inline void fetch_rows(const ForwardProblem<bfloat16, float>& p, const bf16::ForwardItem& item, std::int64_t t, bool queries, bool out,
                       Fetch& fetch) {
  const std::int64_t first = item.first_row + t * bf16::kUnit, rows = smaller(bf16::kUnit, item.first_row + item.rows - first);
  if (queries) fetch.add(p.q.data + first * p.q.row + item.head * p.q.head, p.q.row * 2, rows, p.shape.width_qk * 2);
  if (out) fetch.add(p.out.data + first * p.out.row + item.head * p.out.head, p.out.row * 4, rows, p.shape.width_v * 4);
}

/// What tile `t` fetches while it is at a range: its own result, if it is stored after this range; what the next tile loads, or the one
/// after it, where the next tile's is loaded meanwhile; and its share of the keys of the next range, or of the next item.
inline void fetch_ahead(const ForwardProblem<bfloat16, float>& p, const bf16::ForwardItem& item, const ItemPlace& at, std::int64_t t,
                        const BlockPacking& packing, Fetch& fetch) {
  if (at.seen[t].end <= at.range.end) fetch_rows(p, item, t, false, true, fetch);
  const std::int64_t ahead = Unit::kTilesRunBeside ? 2 : 1;
  for (std::int64_t next = t == 0 ? 1 : t + ahead; next <= t + ahead; ++next) {
    if (next < at.tiles && at.seen[next].begin < at.seen[next].end && at.seen[next].begin >= at.range.begin) {
      fetch_rows(p, item, next, true, !item.overwrite, fetch);
    }
  }
  const bool more = at.range.end < at.all.end;
  const std::int64_t share = (more ? kRangeKeys : item.next.rows) / at.tiles;
  const std::int64_t first = (more ? at.range.end : item.next.first_row) + t * share;
  fetch_keys(p, more ? item.packed : item.next.packed, {first, first + share}, more, t * share / bf16::kBlock, packing, fetch);
}

/// Hands out the runs of a range, tile by tile, those of a tile of even length. A tile is loaded just before its first, or beside the
/// products of the tile before.
class RangeRuns {
 public:
  RangeRuns(const ForwardProblem<bfloat16, float>& p, const bf16::ForwardItem& item, const ForwardCall& call, const ItemPlace& at,
            float scale, BlockPacking& packing)
      : p_(p), item_(item), call_(call), at_(at), scale_(scale), packing_(packing) {}

  /// False: there are no more.
  bool next(TileRun& run) {
    while (units_ == 0) {
      if (tile_ + 1 == at_.tiles) return false;
      start(++tile_);
    }
    const std::int64_t q0 = item_.first_row + tile_ * bf16::kUnit, count = (units_ + runs_ - 1) / runs_;
    run = {tile_,   item_.tiles[tile_],
           q0,      smaller(q0 + bf16::kUnit, item_.first_row + item_.rows),
           first_,  count,
           adds_,   units_ == count,
           &fetch_, &slices_};
    adds_ = true;
    first_ += count;
    units_ -= count;
    --runs_;
    return true;
  }

  /// Stores a tile whose sums have left the tile unit, if this was its last range.
  void store_tile(std::int64_t t) const {
    if (is_last_range(t)) store_of(t).all();
  }
  /// What has waited for the products of another tile.
  void finish() {
    slices_.finish();
    if (tile_at_work_ >= 0) store_tile(tile_at_work_);
  }

 private:
  /// Keys of the range that a tile sees.
  KeyRange part_of(std::int64_t t) const { return {larger(at_.range.begin, at_.seen[t].begin), smaller(at_.range.end, at_.seen[t].end)}; }
  std::int64_t units_of(std::int64_t t) const {
    const KeyRange part = part_of(t);
    if (part.begin >= part.end) return 0;
    return round_up(part.end - item_.packed.first_key, bf16::kUnit) / bf16::kUnit - (part.begin - item_.packed.first_key) / bf16::kUnit;
  }
  bool is_first_range(std::int64_t t) const { return at_.seen[t].begin >= at_.range.begin; }
  bool is_last_range(std::int64_t t) const { return at_.seen[t].end <= at_.range.end; }
  TileStore store_of(std::int64_t t) const { return {p_, item_, t, call_.on.tiles[t]}; }
  TileLoad load_of(std::int64_t t) const { return {p_, item_, t, scale_, call_.on.tiles[t]}; }

  void start(std::int64_t t) {
    const KeyRange seen = part_of(t);
    if (seen.begin >= seen.end) return;
    if constexpr (Unit::kTilesRunBeside) slices_.finish();
    const bool first_range = is_first_range(t);
    if (first_range && t != loaded_) load_of(t).all();
    adds_ = !first_range || !item_.overwrite;
    const std::int64_t begin = seen.begin - item_.packed.first_key, end = seen.end - item_.packed.first_key;
    for (std::int64_t block = begin / bf16::kBlock; block * bf16::kBlock < end; ++block) wait_until_packed(item_, block, packing_);
    first_ = begin / bf16::kUnit;
    units_ = units_of(t);
    runs_ = (units_ + kRunUnits - 1) / kRunUnits;
    fetch_ = Fetch();
    fetch_ahead(p_, item_, at_, t, packing_, fetch_);
    const std::int64_t products = units_ * 4 * (call_.value_pairs - 1);
    fetch_.start(products);
    if constexpr (Unit::kTilesRunBeside) work_beside(t, products);
  }

  /// Work of other tiles for the products of tile `t`. The sums of the tile before leave the tile unit with the first of these.
  void work_beside(std::int64_t t, std::int64_t products) {
    if (tile_at_work_ >= 0 && is_last_range(tile_at_work_)) {
      store_ = store_of(tile_at_work_);
      slices_.add(store_, store_.slices());
    }
    std::int64_t next = t + 1;
    while (next < at_.tiles && units_of(next) == 0) ++next;
    if (next < at_.tiles && is_first_range(next)) {
      load_ = load_of(next);
      loaded_ = next;
      slices_.add(load_, load_.slices());
    }
    if (tile_at_work_ < 0) {  // what it has to fetch first
      for (std::int64_t i = t + 1; i < at_.tiles; ++i) units_behind_ += units_of(i);
    } else {
      const std::int64_t share = products > 0 ? (packing_.slices() * units_ + units_behind_ - 1) / units_behind_ : 0;
      if (share > 0) slices_.add(packing_, share);
      units_behind_ -= units_;
    }
    tile_at_work_ = t;
    slices_.start(products);
  }

  const ForwardProblem<bfloat16, float>& p_;
  const bf16::ForwardItem& item_;
  const ForwardCall& call_;
  const ItemPlace& at_;
  float scale_;
  BlockPacking& packing_;
  std::int64_t tile_ = -1, first_ = 0, units_ = 0, runs_ = 0;
  bool adds_ = false;
  Fetch fetch_;
  Slices slices_;
  TileStore store_;
  TileLoad load_;
  std::int64_t tile_at_work_ = -1, loaded_ = -1;
  std::int64_t units_behind_ = 0;  ///< Of the tiles that come after the first: they share the packing.
};

/// The tiles of the item against a range.
inline void attend_range(const ForwardProblem<bfloat16, float>& p, const bf16::ForwardItem& item, const ForwardCall& call,
                         const ItemPlace& at, float scale, BlockPacking& packing, Pacer& pacer) {
  const AttendRun attend = kAttendRun[bf16::padded(p.shape.width_qk) / bf16::kUnit - 1];
  const double flop = 2.0 * bf16::kUnit * bf16::kUnit * static_cast<double>(p.shape.width_qk + p.shape.width_v);
  RangeRuns runs(p, item, call, at, scale, packing);
  Pending pending(call.on.discard);
  TileRun run;
  while (runs.next(run)) {
    attend(call, pending, run);
    pacer.did(flop * static_cast<double>(run.units));
    if (Unit::kTilesRunBeside || !run.last) continue;
    pending.flush();
    runs.store_tile(run.tile);
  }
  if constexpr (Unit::kTilesRunBeside) {
    pending.flush();
    runs.finish();
  }
}

/// What is packed beside the products of a range: blocks of the item's next range, or of the first one of the item to come.
inline void aim_packing(BlockPacking& packing, const bf16::ForwardItem& item, const ItemPlace& at) {
  const auto& next = item.next;
  if (at.range.end < at.all.end) {
    packing.aim(item.packed, item.seen, item.seen_count, {at.range.end, at.range.end + kRangeKeys});
  } else if (next.rows > 0 && next.seen_count > 0) {
    const std::int64_t range = next.packed.first_key + round_down(next.seen[0] * bf16::kBlock, kRangeKeys);
    packing.aim(next.packed, next.seen, next.seen_count, {range, range + kRangeKeys});
  } else {
    packing.aim_at_nothing();
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
    TileLoad(p, item, t, scale, call.on.tiles[t]).all();
    __builtin_memset(call.on.tiles[t].sums, 0, static_cast<std::size_t>(call.value_pairs * kUnitScores) * sizeof(float));
    TileStore(p, item, t, call.on.tiles[t]).all();
  }
  Pacer pacer(item.progress);
  BlockPacking packing(p);
  for (std::int64_t range = first + round_down(at.all.begin - first, kRangeKeys); range < at.all.end; range += kRangeKeys) {
    at.range = {range, smaller(range + kRangeKeys, item.packed.keys_end)};
    packing.finish();
    pack_range(p, item, at.range);
    if constexpr (Unit::kTilesRunBeside) aim_packing(packing, item, at);
    attend_range(p, item, call, at, scale, packing, pacer);
  }
  packing.finish();
  release_blocks(item);
}

}  // namespace
}  // namespace periplus::kernels::cpu
