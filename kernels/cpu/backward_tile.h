// Included by tiles_<level>.cpp after lanes.h; see there.
#pragma once

#include <sched.h>

#include "kernels/cpu/tile_kernels.h"

namespace periplus::kernels::cpu {
namespace {

/// Scratch of one backward tile. Keys are lanes; dk and dv stay here, transposed, until all query rows have passed.
struct BackwardTile {
  float *keys_t, *values_t;     ///< [D][kBackwardTile], [E][kBackwardTile]
  float* keys;                  ///< [kBackwardTile][qk_stride]
  float *dkeys_t, *dvalues_t;   ///< [D][kBackwardTile], [E][kBackwardTile]
  float *queries, *douts, *dq;  ///< [kBackwardTile][qk_stride | v_stride | qk_stride]
  float *weights, *dscores;     ///< [kBackwardTile][kBackwardTile]
  std::int64_t qk_stride, v_stride;
};

inline std::int64_t backward_scratch_floats(const AttentionShape& shape) {
  return kBackwardTile *
         (2 * (shape.width_qk + shape.width_v) + 3 * packed_stride(shape.width_qk) + packed_stride(shape.width_v) + 2 * kBackwardTile);
}

inline BackwardTile carve_backward(const AttentionShape& shape, float* scratch) {
  BackwardTile tile;
  tile.qk_stride = packed_stride(shape.width_qk);
  tile.v_stride = packed_stride(shape.width_v);
  const auto take = [&](std::int64_t width) {
    float* taken = scratch;
    scratch += width * kBackwardTile;
    return taken;
  };
  tile.keys_t = take(shape.width_qk);
  tile.values_t = take(shape.width_v);
  tile.dkeys_t = take(shape.width_qk);
  tile.dvalues_t = take(shape.width_v);
  tile.keys = take(tile.qk_stride);
  tile.queries = take(tile.qk_stride);
  tile.dq = take(tile.qk_stride);
  tile.douts = take(tile.v_stride);
  tile.weights = take(kBackwardTile);
  tile.dscores = take(kBackwardTile);
  return tile;
}

/// A band cut to one query tile and one key tile: rows [q0,q1) and, among the key lanes, [begin,end) cover it.
struct BackwardStep {
  Band band;
  std::int64_t head, first_row, first_key;
  std::int64_t begin, end;
};

/// Rows of the bands of a query tile that reach keys [k0,k1): one rectangle, possibly empty.
inline Band cut_keys(Band band, std::int64_t k0, std::int64_t k1) {
  band.k0 = larger(band.k0, k0);
  band.k1 = smaller(band.k1, k1);
  band.q0 = larger(band.q0, band.k0 - band.hi);
  band.q1 = smaller(band.q1, band.k1 - band.lo);
  band.k0 = larger(band.k0, band.q0 + band.lo);
  band.k1 = smaller(band.k1, band.q1 + band.hi);
  return band;
}

inline bool has_pairs(const Band& band) { return band.q0 < band.q1 && band.k0 < band.k1; }

struct RowTerms {
  float lse, delta;  ///< lse in base 2; +inf where the row attends nothing, which makes every weight 0.
};

/// One row, one vector of keys: scores and dP become weights P and dS (without the scale).
template <bool Masked>
void soften_row(const BackwardStep& step, std::int64_t q, const RowTerms& terms, float scale, float cap, float* weights, float* dscores) {
  const std::int64_t first = step.first_key;
  const auto from = static_cast<std::int32_t>(larger(step.band.k0, q + step.band.lo) - first);
  const auto to = static_cast<std::int32_t>(smaller(step.band.k1, q + step.band.hi + 1) - first);
  const Ints lanes = lane_numbers();
  for (std::int64_t lane = step.begin; lane < step.end; lane += kLanes) {
    Vec s = load(weights + lane) * scale;
    Vec slope = splat(1.0f);
    if (cap > 0) {
      const Vec t = tanh(s);
      slope = 1.0f - t * t;
      s = cap * t;
    }
    Vec weight = exp2(s - terms.lse);
    Vec dscore = weight * (load(dscores + lane) - terms.delta) * slope;
    if constexpr (Masked) {
      const Ints key = lanes + static_cast<std::int32_t>(lane);
      const Ints seen = (key >= from) & (key < to);
      weight = seen ? weight : Vec{};
      dscore = seen ? dscore : Vec{};
    }
    store(weights + lane, weight);
    store(dscores + lane, dscore);
  }
}

template <class S>
void soften_rows(const BackwardProblem<S, float>& p, const BackwardStep& step, const BackwardTile& tile) {
  const float cap = static_cast<float>(p.softcap) * kLog2E;
  const float scale = static_cast<float>(p.softcap > 0 ? p.scale / p.softcap : p.scale * static_cast<double>(kLog2E));
  const Band& band = step.band;
  for (std::int64_t q = band.q0; q < band.q1; ++q) {
    const float lse = p.lse.data[q * p.lse.row + step.head * p.lse.head];
    const RowTerms terms{lse == -kInfinity ? kInfinity : lse * kLog2E, p.delta.data[q * p.delta.row + step.head * p.delta.head]};
    const std::int64_t row = (q - step.first_row) * kBackwardTile;
    const bool whole =
        step.first_key + step.begin >= larger(band.k0, q + band.lo) && step.first_key + step.end <= smaller(band.k1, q + band.hi + 1);
    if (whole) {
      soften_row<false>(step, q, terms, scale, cap, tile.weights + row, tile.dscores + row);
    } else {
      soften_row<true>(step, q, terms, scale, cap, tile.weights + row, tile.dscores + row);
    }
  }
}

/// Adds the rows of one step to dq; the caller holds the turn.
template <class S>
void add_dq(const BackwardProblem<S, float>& p, const BackwardStep& step, const BackwardTile& tile) {
  const float scale = static_cast<float>(p.scale);
  const std::int64_t width = p.shape.width_qk;
  for (std::int64_t q = step.band.q0; q < step.band.q1; ++q) {
    const float* from = tile.dq + (q - step.first_row) * tile.qk_stride;
    float* to = p.dq.data + q * p.dq.row + step.head * p.dq.head;
    for (std::int64_t i = 0; i < width; i += kLanes) {
      store_some(to + i, load_some(to + i, width - i) + scale * load(from + i), width - i);
    }
  }
}

template <class S>
void backward_step(const BackwardProblem<S, float>& p, const BackwardStep& step, const BackwardTile& tile, const Progress& progress) {
  const std::int64_t d = p.shape.width_qk, e = p.shape.width_v;
  const std::int64_t row = step.band.q0 - step.first_row, rows = step.band.q1 - step.band.q0;
  const std::int64_t begin = step.begin, lanes = step.end - step.begin;
  const float* queries = tile.queries + row * tile.qk_stride;
  const float* douts = tile.douts + row * tile.v_stride;
  float* weights = tile.weights + row * kBackwardTile + begin;
  float* dscores = tile.dscores + row * kBackwardTile + begin;
  multiply<false>({queries, tile.qk_stride, 1}, tile.keys_t + begin, kBackwardTile, d, rows, lanes, weights, kBackwardTile);
  multiply<false>({douts, tile.v_stride, 1}, tile.values_t + begin, kBackwardTile, e, rows, lanes, dscores, kBackwardTile);
  progress.call(progress.context);
  soften_rows(p, step, tile);
  multiply<true>({douts, 1, tile.v_stride}, weights, kBackwardTile, rows, e, lanes, tile.dvalues_t + begin, kBackwardTile);
  progress.call(progress.context);
  multiply<true>({queries, 1, tile.qk_stride}, dscores, kBackwardTile, rows, d, lanes, tile.dkeys_t + begin, kBackwardTile);
  progress.call(progress.context);
  multiply<false>({dscores, kBackwardTile, 1}, tile.keys + begin * tile.qk_stride, tile.qk_stride, lanes, rows, round_up(d, kLanes),
                  tile.dq + row * tile.qk_stride, tile.qk_stride);
}

/// The last key tile before `tile` that reaches this query tile, plus one; 0 if there is none.
inline std::int32_t turn_before(const BandList& list, std::int64_t tile) {
  std::int64_t turn = 0;
  for (std::int64_t b = 0; b < list.count; ++b) {
    const Band& band = list.bands[b];
    if (band.k0 / kBackwardTile < tile) turn = larger(turn, smaller(tile - 1, (band.k1 - 1) / kBackwardTile) + 1);
  }
  return static_cast<std::int32_t>(turn);
}

/// Waits for the key tiles before this one. They were started earlier, so the first of them never waits: no deadlock,
/// whatever the number of threads. Yields, because ranks may share cores.
inline void wait_for_turn(const std::int32_t* turn, std::int32_t expected, const Progress& progress) {
  for (int spins = 0; __atomic_load_n(turn, __ATOMIC_ACQUIRE) != expected; ++spins) {
    progress.call(progress.context);
    if (spins > 100) sched_yield();
  }
}

/// All bands of one query tile of one head.
template <class S>
void backward_query_tile(const BackwardProblem<S, float>& p, const BackwardItem& item, const BackwardTile& tile, std::int64_t head,
                         std::int64_t query_tile) {
  const BandList& list = item.query_tiles[query_tile];
  const std::int64_t first_row = query_tile * kBackwardTile;
  const std::int64_t last_key = item.first_key + item.keys;
  std::int64_t q0 = first_row + kBackwardTile, q1 = first_row;
  for (std::int64_t b = 0; b < list.count; ++b) {
    const Band band = cut_keys(list.bands[b], item.first_key, last_key);
    if (!has_pairs(band)) continue;
    q0 = smaller(q0, band.q0);
    q1 = larger(q1, band.q1);
  }
  if (q0 >= q1) return;
  pack_rows(p.q.data + q0 * p.q.row + head * p.q.head, p.q.row, q1 - q0, p.shape.width_qk, tile.queries + (q0 - first_row) * tile.qk_stride,
            tile.qk_stride);
  pack_rows(p.dout.data + q0 * p.dout.row + head * p.dout.head, p.dout.row, q1 - q0, p.shape.width_v,
            tile.douts + (q0 - first_row) * tile.v_stride, tile.v_stride);
  std::int32_t* turn = item.turns + head * item.query_tile_count + query_tile;
  const std::int32_t expected = turn_before(list, item.tile);
  for (std::int64_t b = 0; b < list.count; ++b) {
    const Band band = cut_keys(list.bands[b], item.first_key, last_key);
    if (!has_pairs(band)) continue;
    const BackwardStep step{
        band, head, first_row, item.first_key, round_down(band.k0 - item.first_key, kLanes), round_up(band.k1 - item.first_key, kLanes)};
    backward_step(p, step, tile, item.progress);
    item.progress.call(item.progress.context);
    wait_for_turn(turn, expected, item.progress);
    add_dq(p, step, tile);
  }
  __atomic_store_n(turn, static_cast<std::int32_t>(item.tile + 1), __ATOMIC_RELEASE);
}

/// algorithms.md 1.2 for one key tile: five products per pair of tiles.
template <class S>
void backward_tile(const BackwardProblem<S, float>& p, const BackwardItem& item) {
  const AttentionShape& shape = p.shape;
  if (item.first_query_tile > item.last_query_tile && !p.overwrite_dkdv) return;
  const BackwardTile tile = carve_backward(shape, item.scratch);
  const S* keys = p.k.data + item.first_key * p.k.row + item.kv_head * p.k.head;
  pack_rows(keys, p.k.row, item.keys, shape.width_qk, tile.keys, tile.qk_stride);
  // Lanes past the last key are multiplied by weights of 0, so they must hold numbers.
  const std::int64_t padding = round_up(item.keys, kLanes) - item.keys;
  __builtin_memset(tile.keys + item.keys * tile.qk_stride, 0, static_cast<std::size_t>(padding * tile.qk_stride) * sizeof(float));
  pack_transposed(keys, p.k.row, item.keys, shape.width_qk, tile.keys_t, kBackwardTile);
  pack_transposed(p.v.data + item.first_key * p.v.row + item.kv_head * p.v.head, p.v.row, item.keys, shape.width_v, tile.values_t,
                  kBackwardTile);
  __builtin_memset(tile.dkeys_t, 0, static_cast<std::size_t>((shape.width_qk + shape.width_v) * kBackwardTile) * sizeof(float));
  const std::int64_t group = shape.heads / shape.kv_heads;
  for (std::int64_t head = item.kv_head * group; head < (item.kv_head + 1) * group; ++head) {
    for (std::int64_t t = item.first_query_tile; t <= item.last_query_tile; ++t) backward_query_tile(p, item, tile, head, t);
  }
  float* factor = tile.weights;
  for (std::int64_t i = 0; i < kBackwardTile; ++i) factor[i] = static_cast<float>(p.scale);
  unpack_transposed(tile.dkeys_t, kBackwardTile, item.keys, shape.width_qk, factor, !p.overwrite_dkdv,
                    p.dk.data + item.first_key * p.dk.row + item.kv_head * p.dk.head, p.dk.row);
  for (std::int64_t i = 0; i < kBackwardTile; ++i) factor[i] = 1;
  unpack_transposed(tile.dvalues_t, kBackwardTile, item.keys, shape.width_v, factor, !p.overwrite_dkdv,
                    p.dv.data + item.first_key * p.dv.row + item.kv_head * p.dv.head, p.dv.row);
}

}  // namespace
}  // namespace periplus::kernels::cpu
