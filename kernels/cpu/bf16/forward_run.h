// One tile of 32 query rows against a run of units. Included by forward.h.
//
// A run is up to 10 neighbouring units of 32 keys:
//   scores   S^T = K Q^T unit by unit; while the tile unit computes one, the vector unit turns the last into weights P^T;
//   sums     O^T += V^T P^T, 32 values at a time, over all units of the run; the first of these hides the last weights.
// The run is that long because sums are loaded and stored once a run, and no longer so that its weights (20 KiB), the queries (8) and the
// scores (8) stay in the first-level cache while keys, values and sums stream past them.
#pragma once

#include "kernels/cpu/bf16/fetch.h"
#include "kernels/cpu/bf16/state.h"

namespace periplus::kernels::cpu {
namespace {

constexpr std::int64_t kUnitsPerBlock = bf16::kBlock / bf16::kUnit;
constexpr std::int64_t kRunUnits = 10;  ///< At most.

struct ForwardScratch {
  float* scores;      ///< [2][kUnitScores]
  bfloat16* weights;  ///< [kRunUnits][kUnitWeights]
  float* discard;     ///< [kUnitScores]
  QueryTile* tiles;   ///< Of the item.
};

/// What stays the same for all runs of an item.
struct ForwardCall {
  const AttentionShape& shape;
  const bf16::PackedKeys& packed;
  ForwardScratch on;
  std::int64_t value_pairs;  ///< E / 32
  float cap, cap_scale;      ///< cap in base 2 (0: none); scores times cap_scale go into tanh.
};

/// Neighbouring units as seen by one tile.
struct TileRun {
  std::int64_t tile;  ///< Of the item.
  bf16::TileBands bands;
  std::int64_t q0, q1;        ///< Its rows.
  std::int64_t first, units;  ///< Units, counted from the first packed key.
  bool adds;                  ///< To what was summed before; else there is nothing.
  bool last;                  ///< Of the tile in this range.
  Fetch* fetch;               ///< For later.
};

inline UnitPlace place_of(const ForwardCall& call, const TileRun& run, std::int64_t unit) {
  const std::int64_t k0 = call.packed.first_key + (run.first + unit) * bf16::kUnit;
  return {run.q0, run.q1, k0, smaller(k0 + bf16::kUnit, call.packed.keys_end)};
}

/// Everything summed so far for a tile, scaled by `factors`; weights of the first `units` units of this run too.
[[gnu::noinline]] inline void rescale(const ForwardCall& call, const TileRun& run, const Factors& factors, std::int64_t units) {
  for (std::int64_t i = 0; i < call.value_pairs * 4; ++i) {
    for (std::int64_t row = 0; row < 16; ++row) {
      float* at = call.on.tiles[run.tile].sums + i * 256 + row * 16;
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

/// Weights of a unit that were too large: nothing runs meanwhile.
[[gnu::noinline]] inline void soften_again(const ForwardCall& call, const TileRun& run, const float* scores, std::int64_t unit) {
  Running& running = call.on.tiles[run.tile].running;
  rescale(call, run, raise_top(scores, running), unit);
  soften(scores, running, call.on.weights + unit * kUnitWeights);
  settle(running);
}

/// Softcap and mask.
inline void prepare(const ForwardCall& call, const bf16::TileBands& bands, const UnitPlace& at, float* scores) {
  if (call.cap > 0) {
    for (std::int64_t i = 0; i < kUnitScores; i += kLanes) store(scores + i, call.cap * tanh(load(scores + i) * call.cap_scale));
  }
  if (!wholly_allowed(bands, at)) hide(bands, at, scores);
}

/// What the scores of the last product need before they are softened: mostly nothing.
[[gnu::always_inline]] inline void make_ready(const ForwardCall& call, Pending& pending, const TileRun& run, std::int64_t unit,
                                              float* scores) {
  Running& running = call.on.tiles[run.tile].running;
  const UnitPlace at = place_of(call, run, unit);
  const bool plain = call.cap == 0 && wholly_allowed(run.bands, at), fresh = unit == 0 && is_fresh(running);
  if (plain && !fresh) return;
  pending.flush();
  if (!plain) prepare(call, run.bands, at, scores);
  if (fresh) raise_top(scores, running);  // nothing has been summed
}

/// Units of values times weights, 32 values at a time.
struct ValueOperands {
  const bfloat16* values[kRunUnits];
  const bfloat16* weights;
  std::int64_t column = 0;

  ValueOperands(const ForwardCall& call, const TileRun& run) : weights(call.on.weights) {
    for (std::int64_t unit = 0; unit < run.units; ++unit) {
      const std::int64_t at = run.first + unit;
      values[unit] =
          call.packed.values + call.packed.slots[at / kUnitsPerBlock] * call.packed.block_stride + at % kUnitsPerBlock * 2 * kTile;
    }
  }
  const bfloat16* a(std::int64_t step) const { return values[step] + column; }
  const bfloat16* b(std::int64_t step) const { return weights + step * kUnitWeights; }
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

/// The first 32 values of a run of 5 units or more, whose last weights, needed by its last step, are made meanwhile.
inline void soften_beside_values(const ForwardCall& call, Pending& pending, const TileRun& run, const ValueOperands& on,
                                 const float* scores) {
  QueryTile& tile = call.on.tiles[run.tile];
  PiecewiseSoftmax<2> softmax(scores, tile.running, call.on.weights + (run.units - 1) * kUnitWeights);
  pending.multiply(run.adds, on, run.units, tile.sums, softmax);
  softmax.finish(tile.running);
  if (settled(tile.running)) return;
  pending.drop();
  soften_again(call, run, scores, run.units - 1);
  Unit::fence();
  pending.multiply(run.adds, on, run.units, tile.sums);
}

/// One run. `Steps` is D / 32.
template <int Steps>
void attend_run(const ForwardCall& call, Pending& pending, const TileRun& run) {
  // Half of the products work for each half of the rows.
  constexpr std::int64_t kPairsPerPart = (kUnitPairs + 2 * Steps - 1) / (2 * Steps);
  QueryTile& tile = call.on.tiles[run.tile];
  const auto scores_of = [&](std::int64_t unit) __attribute__((always_inline)) { return call.on.scores + unit % 2 * kUnitScores; };
  const auto keys_of = [&](std::int64_t unit) __attribute__((always_inline)) {
    const std::int64_t at = run.first + unit;
    const bfloat16* keys = call.packed.keys + call.packed.slots[at / kUnitsPerBlock] * call.packed.block_stride;
    return Pending::Operands{keys + at % kUnitsPerBlock * Steps * 2 * kTile, tile.queries, 2 * kTile, 2 * kTile};
  };
  pending.multiply(false, keys_of(0), Steps, scores_of(0));
  for (std::int64_t unit = 1; unit < run.units; ++unit) {
    const std::int64_t last = unit - 1;
    make_ready(call, pending, run, last, scores_of(last));
    PiecewiseSoftmax<kPairsPerPart> softmax(scores_of(last), tile.running, call.on.weights + last * kUnitWeights);
    pending.multiply(false, keys_of(unit), Steps, scores_of(unit), softmax);
    softmax.finish(tile.running);
    if (!settled(tile.running)) soften_again(call, run, scores_of(last), last);
  }

  const std::int64_t last = run.units - 1;
  make_ready(call, pending, run, last, scores_of(last));
  ValueOperands on(call, run);
  if (run.units >= 5) {
    soften_beside_values(call, pending, run, on, scores_of(last));
  } else {
    pending.flush();
    soften(scores_of(last), tile.running, call.on.weights + last * kUnitWeights);
    if (!settled(tile.running)) soften_again(call, run, scores_of(last), last);
    Unit::fence();
    pending.multiply(run.adds, on, run.units, tile.sums);
  }
  WeightSums sums(call.on.weights, run.units);
  ValueWork work(*run.fetch, sums);
  for (std::int64_t pair = 1; pair < call.value_pairs; ++pair) {
    on.column = pair * kUnitsPerBlock * 2 * kTile;
    pending.multiply(run.adds, on, run.units, tile.sums + pair * kUnitScores, work);
  }
  sums.finish(tile.running);
}

using AttendRun = void (*)(const ForwardCall&, Pending&, const TileRun&);
constexpr AttendRun kAttendRun[] = {attend_run<1>, attend_run<2>, attend_run<3>, attend_run<4>,
                                    attend_run<5>, attend_run<6>, attend_run<7>, attend_run<8>};

}  // namespace
}  // namespace periplus::kernels::cpu
