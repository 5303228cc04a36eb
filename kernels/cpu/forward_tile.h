// Included by tiles_<level>.cpp after lanes.h; see there.
#pragma once

#include "kernels/cpu/tile_kernels.h"

namespace periplus::kernels::cpu {
namespace {

constexpr std::int64_t kKeysPerStep = 64;
/// Rows of a tile are computed in strips whose queries, scores and sums fit the first-level cache for D <= 64.
constexpr std::int64_t kStrip = 64;
constexpr std::int64_t kStrips = kForwardRows / kStrip;

/// Scratch of one forward tile. Query rows are lanes: maximum and sum over keys need no horizontal operation.
struct ForwardTile {
  float *queries, *sums;  ///< [kStrips][D or E][kStrip]
  float* scores;          ///< [kKeysPerStep][kStrip]
  float *keys, *values;   ///< [kKeysPerStep][packed_stride]
  float *top, *total;     ///< [kForwardRows]: maximum in base 2, sum of weights.
  std::int64_t key_stride, value_stride;
};

inline std::int64_t forward_scratch_floats(const AttentionShape& shape) {
  return (shape.width_qk + shape.width_v + 2) * kForwardRows +
         kKeysPerStep * (kStrip + packed_stride(shape.width_qk) + packed_stride(shape.width_v));
}

inline ForwardTile carve(const AttentionShape& shape, float* scratch) {
  ForwardTile tile;
  tile.key_stride = packed_stride(shape.width_qk);
  tile.value_stride = packed_stride(shape.width_v);
  const auto take = [&](std::int64_t floats) {
    float* taken = scratch;
    scratch += floats;
    return taken;
  };
  tile.queries = take(shape.width_qk * kForwardRows);
  tile.sums = take(shape.width_v * kForwardRows);
  tile.scores = take(kKeysPerStep * kStrip);
  tile.keys = take(kKeysPerStep * tile.key_stride);
  tile.values = take(kKeysPerStep * tile.value_stride);
  tile.top = take(kForwardRows);
  tile.total = take(kForwardRows);
  return tile;
}

/// Keys [k0,k1) of a band against one strip. `band` is moved so that its rows are lanes of the strip; all rows that may
/// see one of the keys are among lanes [begin,end).
struct ForwardStep {
  Band band;
  std::int64_t k0, k1;
  std::int64_t begin, end;
};

/// The strip's part of the scratch.
struct ForwardStrip {
  float *queries, *sums, *top, *total;
};

inline ForwardStrip strip_of(const ForwardTile& tile, const AttentionShape& shape, std::int64_t strip) {
  const std::int64_t row = strip * kStrip;
  return {tile.queries + row * shape.width_qk, tile.sums + row * shape.width_v, tile.top + row, tile.total + row};
}

/// Scales column `lane` of the scores to base 2, applies softcap and mask, and returns the maximum.
template <bool Masked>
Vec prepare_scores(const ForwardStep& step, std::int64_t lane, float scale, float cap, float* scores, Vec top) {
  const Ints rows = lane_numbers() + static_cast<std::int32_t>(lane);
  const Vec hidden = splat(-kInfinity);
  for (std::int64_t k = step.k0; k < step.k1; ++k, scores += kStrip) {
    Vec s = load(scores) * scale;
    if (cap > 0) s = cap * tanh(s);
    if constexpr (Masked) {
      const auto from = static_cast<std::int32_t>(larger(step.band.q0, k - step.band.hi));
      const auto to = static_cast<std::int32_t>(smaller(step.band.q1, k - step.band.lo + 1));
      s = (rows >= from) & (rows < to) ? s : hidden;
    }
    store(scores, s);
    top = s > top ? s : top;
  }
  return top;
}

/// Turns one vector column of scores into weights and updates maximum, total and sums of its rows.
inline void soften_column(const ForwardStrip& strip, const ForwardStep& step, std::int64_t lane, float scale, float cap,
                          std::int64_t width_v, float* scores) {
  const Band& band = step.band;
  const bool whole =
      lane >= band.q0 && lane + kLanes <= band.q1 && step.k0 - (lane + kLanes - 1) >= band.lo && step.k1 - 1 - lane <= band.hi;
  const Vec old = load(strip.top + lane);
  const Vec top =
      whole ? prepare_scores<false>(step, lane, scale, cap, scores, old) : prepare_scores<true>(step, lane, scale, cap, scores, old);
  const Vec zero = {};
  const Vec origin = top == splat(-kInfinity) ? zero : top;
  Vec total = zero;
  for (std::int64_t k = step.k0; k < step.k1; ++k, scores += kStrip) {
    const Vec weight = exp2(load(scores) - origin);
    store(scores, weight);
    total += weight;
  }
  if (any(old != top)) {
    const Vec shrink = exp2(old - origin);
    store(strip.total + lane, load(strip.total + lane) * shrink);
    float* sums = strip.sums + lane;
    for (std::int64_t i = 0; i < width_v; ++i, sums += kStrip) store(sums, load(sums) * shrink);
    store(strip.top + lane, top);
  }
  store(strip.total + lane, load(strip.total + lane) + total);
}

/// The packed keys and values of a step against one strip.
inline void forward_strip(const AttentionShape& shape, const ForwardTile& tile, const ForwardStrip& strip, const ForwardStep& step,
                          float scale, float cap) {
  const std::int64_t keys = step.k1 - step.k0, lanes = step.end - step.begin;
  float* scores = tile.scores + step.begin;
  multiply<false>({tile.keys, tile.key_stride, 1}, strip.queries + step.begin, kStrip, shape.width_qk, keys, lanes, scores, kStrip);
  for (std::int64_t lane = step.begin; lane < step.end; lane += kLanes) {
    soften_column(strip, step, lane, scale, cap, shape.width_v, tile.scores + lane);
  }
  multiply<true>({tile.values, 1, tile.value_stride}, scores, kStrip, keys, shape.width_v, lanes, strip.sums + step.begin, kStrip);
}

template <class S>
void forward_band(const ForwardProblem<S, float>& p, const ForwardItem& item, const ForwardTile& tile, const Band& band) {
  const AttentionShape& shape = p.shape;
  const std::int64_t kv = item.head / (shape.heads / shape.kv_heads);
  const float cap = static_cast<float>(p.softcap) * kLog2E;
  const float scale = static_cast<float>(p.softcap > 0 ? p.scale / p.softcap : p.scale * static_cast<double>(kLog2E));
  for (std::int64_t k0 = band.k0; k0 < band.k1; k0 += kKeysPerStep) {
    const std::int64_t k1 = smaller(k0 + kKeysPerStep, band.k1);
    const std::int64_t q0 = larger(band.q0, k0 - band.hi), q1 = smaller(band.q1, k1 - band.lo);
    pack_rows(p.k.data + k0 * p.k.row + kv * p.k.head, p.k.row, k1 - k0, shape.width_qk, tile.keys, tile.key_stride);
    pack_rows(p.v.data + k0 * p.v.row + kv * p.v.head, p.v.row, k1 - k0, shape.width_v, tile.values, tile.value_stride);
    for (std::int64_t s = (q0 - item.first_row) / kStrip; s * kStrip < q1 - item.first_row; ++s) {
      const std::int64_t origin = item.first_row + s * kStrip;
      const Band moved{band.q0 - origin, band.q1 - origin, band.k0, band.k1, band.lo + origin, band.hi + origin};
      const ForwardStep step{moved, k0, k1, round_down(larger(q0 - origin, 0), kLanes), round_up(smaller(q1 - origin, kStrip), kLanes)};
      forward_strip(shape, tile, strip_of(tile, shape, s), step, scale, cap);
      item.progress.call(item.progress.context);
    }
  }
}

/// Loads queries and state, strip by strip.
template <class S>
void load_rows(const ForwardProblem<S, float>& p, const ForwardItem& item, const ForwardTile& tile) {
  for (std::int64_t lane = 0; lane < kForwardRows; ++lane) {
    tile.top[lane] = -kInfinity;
    tile.total[lane] = 0;
  }
  if (p.overwrite) __builtin_memset(tile.sums, 0, static_cast<std::size_t>(p.shape.width_v * kForwardRows) * sizeof(float));
  for (std::int64_t s = 0; s * kStrip < item.rows; ++s) {
    const ForwardStrip strip = strip_of(tile, p.shape, s);
    const std::int64_t row = item.first_row + s * kStrip, rows = smaller(kStrip, item.rows - s * kStrip);
    if (item.band_count > 0) {
      pack_transposed(p.q.data + row * p.q.row + item.head * p.q.head, p.q.row, rows, p.shape.width_qk, strip.queries, kStrip);
    }
    if (p.overwrite) continue;
    pack_transposed(p.out.data + row * p.out.row + item.head * p.out.head, p.out.row, rows, p.shape.width_v, strip.sums, kStrip);
    for (std::int64_t lane = 0; lane < rows; ++lane) {
      const float lse = p.lse.data[(row + lane) * p.lse.row + item.head * p.lse.head];
      strip.top[lane] = lse * kLog2E;
      strip.total[lane] = lse == -kInfinity ? 0.0f : 1.0f;
    }
  }
}

template <class S>
void store_state(const ForwardProblem<S, float>& p, const ForwardItem& item, const ForwardTile& tile) {
  float* factor = tile.scores;
  for (std::int64_t s = 0; s * kStrip < item.rows; ++s) {
    const ForwardStrip strip = strip_of(tile, p.shape, s);
    const std::int64_t row = item.first_row + s * kStrip, rows = smaller(kStrip, item.rows - s * kStrip);
    for (std::int64_t lane = 0; lane < rows; ++lane) {
      float& lse = p.lse.data[(row + lane) * p.lse.row + item.head * p.lse.head];
      const float top = strip.top[lane], total = strip.total[lane];
      // Compare with zero, not "> 0": a NaN must stay visible.
      factor[lane] = total == 0 ? 0.0f : 1.0f / total;
      const bool unchanged = !p.overwrite && total == 1 && top == lse * kLog2E;  // the round trip through base 2 would round
      if (!unchanged) lse = total == 0 ? -kInfinity : top * kLn2 + __builtin_logf(total);
    }
    unpack_transposed(strip.sums, kStrip, rows, p.shape.width_v, factor, false, p.out.data + row * p.out.row + item.head * p.out.head,
                      p.out.row);
  }
}

/// algorithms.md 1.1 for one query tile: all bands that reach it, in order, with the state loaded and stored once.
template <class S>
void forward_tile(const ForwardProblem<S, float>& p, const ForwardItem& item) {
  if (item.band_count == 0 && !p.overwrite) return;
  const ForwardTile tile = carve(p.shape, item.scratch);
  load_rows(p, item, tile);
  for (std::int64_t b = 0; b < item.band_count; ++b) forward_band(p, item, tile, item.bands[b]);
  store_state(p, item, tile);
}

}  // namespace
}  // namespace periplus::kernels::cpu
