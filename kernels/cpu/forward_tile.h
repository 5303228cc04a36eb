// Forward pass of one query tile; part of tiles.h.
//
// Query rows are lanes: S^T = K Q^T, then O^T += V^T P^T, so that maximum and sum over keys need no horizontal operation and
// the weights are an operand of the second product as they are. A strip of two vectors of rows goes against 128 keys at a
// time. What the blocks of each product share (queries, then weights) is 16 KB with AVX-512 and D = 128: it stays in the
// first-level cache beside the operand that streams through and the sums, and a narrow strip wastes little on the diagonal
// of a causal mask. Packed keys and values are shared by all strips and stay in the second-level cache. Per pair and vector
// of rows the products cost 2 D multiply-adds and the weights 14 operations on the same two ports: for D = 128 5 %.
#pragma once

#include "kernels/cpu/carver.h"
#include "kernels/cpu/outliers.h"
#include "kernels/cpu/packing.h"
#include "kernels/cpu/products.h"
#include "kernels/cpu/tile_kernels.h"

namespace periplus::kernels::cpu {
namespace {

constexpr std::int64_t kKeysPerStep = 128;
constexpr std::int64_t kStrip = 2 * kLanes;
constexpr std::int64_t kStrips = kForwardRows / kStrip;
static_assert(kKeysPerStep <= kMostPackedRows);

/// Scratch of one forward tile.
struct ForwardTile {
  float *queries, *sums;  ///< [kStrips][D or E][kStrip]
  float* scores;          ///< [kKeysPerStep][kStrip]
  float *keys, *values;   ///< [kKeysPerStep][packed_stride]
  float *origin, *total;  ///< [kForwardRows]: what scores are counted from, in base 2; sum of weights.
  std::int64_t key_stride, value_stride;
  std::int64_t loaded = 0;  ///< Strips that hold queries and state.
};

inline ForwardTile carve_forward(const AttentionShape& shape, Carver& carver) {
  ForwardTile tile;
  tile.key_stride = packed_stride(shape.width_qk);
  tile.value_stride = packed_stride(shape.width_v);
  tile.queries = carver.take(shape.width_qk * kForwardRows);
  tile.sums = carver.take(shape.width_v * kForwardRows);
  tile.scores = carver.take(kKeysPerStep * kStrip);
  tile.keys = carver.take(kKeysPerStep * tile.key_stride);
  tile.values = carver.take(kKeysPerStep * tile.value_stride);
  tile.origin = carver.take(kForwardRows);
  tile.total = carver.take(kForwardRows);
  return tile;
}

inline std::int64_t forward_scratch_bytes(const AttentionShape& shape) {
  Carver carver(nullptr);
  carve_forward(shape, carver);
  return carver.bytes();
}

/// Keys [k0,k1) of a band, of which first_key is row 0 of the packed tile, against one strip. `band` is moved so that its
/// rows are lanes of the strip; all rows that may see one of the keys are among lanes [begin,end).
struct ForwardStep {
  Band band;
  std::int64_t k0, k1, first_key;
  std::int64_t begin, end;
};

/// Lanes that see a key.
struct Lanes {
  std::int64_t begin, end;
};
inline Lanes lanes_of(const ForwardStep& step, std::int64_t key) {
  return {larger(step.band.q0, key - step.band.hi), smaller(step.band.q1, key - step.band.lo + 1)};
}

/// Rows [begin,end) of a strip against keys from k on, as far as the same vectors of lanes see them: at the edges of a band
/// not all do.
inline ForwardStep next_step(const Band& band, std::int64_t begin, std::int64_t end, std::int64_t first_key, std::int64_t k,
                             std::int64_t to) {
  ForwardStep step{band, k, to, first_key, kStrip, 0};
  for (std::int64_t lane = round_down(begin, kLanes); lane < end; lane += kLanes) {
    const std::int64_t first = larger(begin, lane) + band.lo, last = smaller(end, lane + kLanes) + band.hi;
    const bool seen = first <= k && k < last;
    if (seen) {
      step.begin = smaller(step.begin, lane);
      step.end = lane + kLanes;
    }
    if (k < last) step.k1 = smaller(step.k1, seen ? last : first);
  }
  return step;
}

/// The strip's part of the scratch.
struct ForwardStrip {
  float *queries, *sums, *origin, *total;
};

inline ForwardStrip strip_of(const ForwardTile& tile, const AttentionShape& shape, std::int64_t strip) {
  const std::int64_t row = strip * kStrip;
  return {tile.queries + row * shape.width_qk, tile.sums + row * shape.width_v, tile.origin + row, tile.total + row};
}

/// The values of a step as the caller gave them, for the rows that were taken out of the packed tile.
template <class S>
struct StepValues {
  const S* data;
  std::int64_t row;
  Outliers outliers;
};

/// Scores [count][kStrip] of one vector of rows become cap * tanh(score).
inline void cap_scores(float cap, std::int64_t count, float* scores) {
  for (std::int64_t k = 0; k < count; ++k, scores += kStrip) store(scores, cap * tanh(load(scores)));
}

/// Hides what the band does not allow; `lane` is the first of the vector.
inline void mask_scores(const ForwardStep& step, std::int64_t lane, float* scores) {
  const Ints rows = lane_numbers() + static_cast<std::int32_t>(lane);
  const Vec hidden = splat(-kInfinity);
  for (std::int64_t k = step.k0; k < step.k1; ++k, scores += kStrip) {
    const Lanes seen = lanes_of(step, k);
    const Ints inside = (rows >= static_cast<std::int32_t>(seen.begin)) & (rows < static_cast<std::int32_t>(seen.end));
    store(scores, inside ? load(scores) : hidden);
  }
}

/// Maximum over keys; four at a time, because each maximum waits for the one before.
inline Vec highest(const float* scores, std::int64_t count) {
  Vec top[4];
  for (Vec& t : top) t = splat(-kInfinity);
  const auto raise = [](Vec& t, Vec s) { t = s > t ? s : t; };
  std::int64_t k = 0;
  for (; k + 4 <= count; k += 4, scores += 4 * kStrip) {
    for (int i = 0; i < 4; ++i) raise(top[i], load(scores + i * kStrip));
  }
  for (; k < count; ++k, scores += kStrip) raise(top[0], load(scores));
  raise(top[0], top[1]);
  raise(top[2], top[3]);
  raise(top[0], top[2]);
  return top[0];
}

/// Weights are 2^(score - origin), and the origin of a row moves only when they would pass 2^kSlack: with it all sums of
/// the row must be scaled. Returns the origin to subtract, which is never -inf.
inline Vec move_origin(const ForwardStrip& strip, std::int64_t lane, Vec top, std::int64_t width_v) {
  constexpr float kSlack = 8;
  const Vec old = load(strip.origin + lane);
  const Ints moves = top > old + kSlack;
  Vec origin = old;
  if (any(moves)) {
    origin = moves ? top : old;
    const Vec shrink = moves ? exp2(old - top) : Vec{} + 1.0f;
    store(strip.total + lane, load(strip.total + lane) * shrink);
    float* sums = strip.sums + lane;
    for (std::int64_t i = 0; i < width_v; ++i, sums += kStrip) store(sums, load(sums) * shrink);
    store(strip.origin + lane, origin);
  }
  return origin == splat(-kInfinity) ? Vec{} : origin;
}

/// Turns one vector column of scores into weights and updates origin, total and sums of its rows.
inline void soften_column(const ForwardStrip& strip, const ForwardStep& step, std::int64_t lane, float cap, std::int64_t width_v,
                          float* scores) {
  const Band& band = step.band;
  const std::int64_t count = step.k1 - step.k0;
  const bool whole =
      lane >= band.q0 && lane + kLanes <= band.q1 && step.k0 - (lane + kLanes - 1) >= band.lo && step.k1 - 1 - lane <= band.hi;
  if (cap > 0) cap_scores(cap, count, scores);
  if (!whole) mask_scores(step, lane, scores);
  const Vec origin = move_origin(strip, lane, highest(scores, count), width_v);
  Vec total = {};
  for (std::int64_t k = 0; k < count; ++k, scores += kStrip) {
    const Vec weight = exp2(load(scores) - origin);
    store(scores, weight);
    total += weight;
  }
  store(strip.total + lane, load(strip.total + lane) + total);
}

/// The packed keys and values of a step against one strip.
template <class S>
void forward_strip(const AttentionShape& shape, const ForwardTile& tile, const ForwardStrip& strip, const ForwardStep& step, float cap,
                   const StepValues<S>& values, Pulse& pulse) {
  const std::int64_t first = step.k0 - step.first_key, keys = step.k1 - step.k0, lanes = step.end - step.begin;
  float* scores = tile.scores + step.begin;
  multiply<false>({tile.keys + first * tile.key_stride, tile.key_stride, 1}, strip.queries + step.begin, kStrip, shape.width_qk, keys,
                  lanes, scores, kStrip, pulse);
  for (std::int64_t lane = step.begin; lane < step.end; lane += kLanes) {
    soften_column(strip, step, lane, cap, shape.width_v, tile.scores + lane);
  }
  multiply<true>({tile.values + first * tile.value_stride, 1, tile.value_stride}, scores, kStrip, keys, shape.width_v, lanes,
                 strip.sums + step.begin, kStrip, pulse);
  for (std::int64_t k = step.k0; values.outliers.any && k < step.k1; ++k) {
    if (!values.outliers.row[k - step.first_key]) continue;
    const Lanes seen = lanes_of(step, k);
    add_outlier(values.data + (k - step.first_key) * values.row, shape.width_v, tile.scores + (k - step.k0) * kStrip,
                larger(seen.begin, step.begin), smaller(seen.end, step.end), strip.sums, kStrip);
  }
}

/// Packs keys and values [k0, k0 + keys).
template <class S>
StepValues<S> pack_step(const ForwardProblem<S, float>& p, const ForwardItem& item, const ForwardTile& tile, std::int64_t k0,
                        std::int64_t keys) {
  const std::int64_t kv = item.head / (p.shape.heads / p.shape.kv_heads);
  StepValues<S> values{p.v.data + k0 * p.v.row + kv * p.v.head, p.v.row, {}};
  pack_rows(p.k.data + k0 * p.k.row + kv * p.k.head, p.k.row, keys, p.shape.width_qk, tile.keys, tile.key_stride);
  item.progress.call(item.progress.context);
  if (!pack_rows(values.data, values.row, keys, p.shape.width_v, tile.values, tile.value_stride)) {
    find_outliers(tile.values, tile.value_stride, 0, keys, p.shape.width_v, values.outliers);
    clear_outliers(values.outliers, tile.values, tile.value_stride, p.shape.width_v);
  }
  return values;
}

/// Keys [k0,k1) of one of the item's bands.
struct KeyStep {
  std::int64_t band, k0, k1;
};

/// The step that starts at key k0 of a band, or with the next band if k0 is the end of this one.
inline KeyStep keys_from(const ForwardItem& item, std::int64_t band, std::int64_t k0) {
  if (k0 == item.bands[band].k1) {
    if (++band == item.band_count) return {band, 0, 0};
    k0 = item.bands[band].k0;
  }
  return {band, k0, smaller(k0 + kKeysPerStep, item.bands[band].k1)};
}

/// Loads queries, scaled so that scores come out in base 2, and state of the next strip.
template <class S>
void load_strip(const ForwardProblem<S, float>& p, const ForwardItem& item, ForwardTile& tile) {
  const std::int64_t s = tile.loaded++;
  const ForwardStrip strip = strip_of(tile, p.shape, s);
  const std::int64_t row = item.first_row + s * kStrip, rows = smaller(kStrip, item.rows - s * kStrip);
  for (std::int64_t lane = 0; lane < kStrip; ++lane) {
    strip.origin[lane] = -kInfinity;
    strip.total[lane] = 0;
  }
  if (item.band_count > 0) {
    const float scale = static_cast<float>(p.softcap > 0 ? p.scale / p.softcap : p.scale * static_cast<double>(kLog2E));
    pack_transposed(p.q.data + row * p.q.row + item.head * p.q.head, p.q.row, rows, p.shape.width_qk, scale, strip.queries, kStrip);
    item.progress.call(item.progress.context);
  }
  if (p.overwrite) {
    __builtin_memset(strip.sums, 0, static_cast<std::size_t>(p.shape.width_v * kStrip) * sizeof(float));
    return;
  }
  pack_transposed(p.out.data + row * p.out.row + item.head * p.out.head, p.out.row, rows, p.shape.width_v, 1.0f, strip.sums, kStrip);
  for (std::int64_t lane = 0; lane < rows; ++lane) {
    const float lse = p.lse.data[(row + lane) * p.lse.row + item.head * p.lse.head];
    strip.origin[lane] = lse * kLog2E;
    strip.total[lane] = lse == -kInfinity ? 0.0f : 1.0f;
  }
}

/// One step of keys against all strips that see them.
template <class S>
void forward_keys(const ForwardProblem<S, float>& p, const ForwardItem& item, ForwardTile& tile, const KeyStep& keys, Pulse& pulse) {
  const float cap = static_cast<float>(p.softcap) * kLog2E;
  const Band& band = item.bands[keys.band];
  const std::int64_t q0 = larger(band.q0, keys.k0 - band.hi), q1 = smaller(band.q1, keys.k1 - band.lo);
  const StepValues<S> values = pack_step(p, item, tile, keys.k0, keys.k1 - keys.k0);
  pulse.beat();
  for (std::int64_t s = (q0 - item.first_row) / kStrip; s * kStrip < q1 - item.first_row; ++s) {
    while (tile.loaded <= s) load_strip(p, item, tile);
    const std::int64_t origin = item.first_row + s * kStrip;
    const std::int64_t begin = larger(q0 - origin, 0), end = smaller(q1 - origin, kStrip);
    const Band moved{band.q0 - origin, band.q1 - origin, band.k0, band.k1, band.lo + origin, band.hi + origin};
    const std::int64_t to = smaller(keys.k1, end + moved.hi);
    for (std::int64_t k = larger(keys.k0, begin + moved.lo); k < to;) {
      const ForwardStep step = next_step(moved, begin, end, keys.k0, k, to);
      forward_strip(p.shape, tile, strip_of(tile, p.shape, s), step, cap, values, pulse);
      pulse.beat();
      k = step.k1;
    }
  }
}

/// Rows that come closer while the tile's products run: keys and values of the next step, spread over most of this one; in the
/// first step queries (and state), which each strip loads just before its products; in the last the rows of the result.
template <class S>
void look_ahead(const ForwardProblem<S, float>& p, const ForwardItem& item, const ForwardTile& tile, const KeyStep& next, Pulse& pulse) {
  const std::int64_t kv = item.head / (p.shape.heads / p.shape.kv_heads), end = item.first_row + item.rows;
  constexpr std::int64_t kSlow = 8, kFast = 32;
  pulse.ahead[0] = rows_ahead(p.k, next.k0, next.k1, kv, p.shape.width_qk, kSlow);
  pulse.ahead[1] = rows_ahead(p.v, next.k0, next.k1, kv, p.shape.width_v, kSlow);
  const bool first = tile.loaded == 0, last = next.band == item.band_count;
  if (first) pulse.ahead[2] = rows_ahead(p.q, item.first_row, end, item.head, p.shape.width_qk, kFast);
  if (last || (first && !p.overwrite)) pulse.ahead[3] = rows_ahead(p.out, item.first_row, end, item.head, p.shape.width_v, kFast);
}

template <class S>
void store_state(const ForwardProblem<S, float>& p, const ForwardItem& item, const ForwardTile& tile) {
  float* factor = tile.scores;
  for (std::int64_t s = 0; s * kStrip < item.rows; ++s) {
    const ForwardStrip strip = strip_of(tile, p.shape, s);
    const std::int64_t row = item.first_row + s * kStrip, rows = smaller(kStrip, item.rows - s * kStrip);
    for (std::int64_t lane = 0; lane < rows; ++lane) {
      float& lse = p.lse.data[(row + lane) * p.lse.row + item.head * p.lse.head];
      const float origin = strip.origin[lane], total = strip.total[lane];
      // Compare with zero, not "> 0": a NaN must stay visible.
      factor[lane] = total == 0 ? 0.0f : 1.0f / total;
      const bool unchanged = !p.overwrite && total == 1 && origin == lse * kLog2E;  // the round trip through base 2 would round
      if (!unchanged) lse = total == 0 ? -kInfinity : origin * kLn2 + __builtin_logf(total);
    }
    unpack_transposed(strip.sums, kStrip, rows, p.shape.width_v, factor, false, p.out.data + row * p.out.row + item.head * p.out.head,
                      p.out.row);
  }
}

/// algorithms.md 1.1 for one query tile: all bands that reach it, in order, with the state loaded and stored once.
template <class S>
void forward_tile(const ForwardProblem<S, float>& p, const ForwardItem& item) {
  if (item.band_count == 0 && !p.overwrite) return;
  Carver carver(item.scratch);
  ForwardTile tile = carve_forward(p.shape, carver);
  Pulse pulse{item.progress};
  KeyStep keys{};
  if (item.band_count > 0) keys = keys_from(item, 0, item.bands[0].k0);
  while (keys.band < item.band_count) {
    const KeyStep next = keys_from(item, keys.band, keys.k1);
    look_ahead(p, item, tile, next, pulse);
    forward_keys(p, item, tile, keys, pulse);
    keys = next;
  }
  while (tile.loaded * kStrip < item.rows) load_strip(p, item, tile);
  store_state(p, item, tile);
}

}  // namespace
}  // namespace periplus::kernels::cpu
