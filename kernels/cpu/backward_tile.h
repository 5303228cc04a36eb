// Backward pass of one key tile; part of tiles.h.
//
// Keys are lanes: S = Q K^T and dP = dO V^T give P and dS, from which dV^T += dO^T P and dK^T += Q^T dS, kept in scratch
// until all query rows have passed, and dQ = dS K, added to the result in a fixed order of key tiles. Per pair and vector of
// 16 keys the five products cost 6 D + 4 E operations of which 16 are a multiply-add, and P and dS 16 more: 3 % for D = 128.
// Query tiles stream through; what the blocks of one product share is 16 to 36 KB and stays in the first-level cache.
#pragma once

#include <sched.h>

#include "kernels/cpu/carver.h"
#include "kernels/cpu/outliers.h"
#include "kernels/cpu/packing.h"
#include "kernels/cpu/products.h"
#include "kernels/cpu/tile_kernels.h"

namespace periplus::kernels::cpu {
namespace {

static_assert(kBackwardKeys <= kMostPackedRows && kBackwardRows <= kMostPackedRows);
/// Row stride of tiles with a lane for each key.
constexpr std::int64_t kKeyStride = kBackwardKeys + 16;

/// Scratch of one backward tile.
struct BackwardTile {
  float *keys_t, *values_t;    ///< [D][kKeyStride], [E][kKeyStride]
  float *dkeys_t, *dvalues_t;  ///< [D][kKeyStride], [E][kKeyStride]
  float* keys;                 ///< [kBackwardKeys][qk_stride], without outliers
  float *queries, *douts;      ///< [kBackwardRows][qk_stride | v_stride]
  float* dq;                   ///< [kBackwardRows][qk_stride]
  float *weights, *dscores;    ///< [kBackwardRows][kKeyStride]
  std::int64_t qk_stride, v_stride;
  Outliers key_outliers;
};

inline BackwardTile carve_backward(const AttentionShape& shape, Carver& carver) {
  BackwardTile tile;
  tile.qk_stride = packed_stride(shape.width_qk);
  tile.v_stride = packed_stride(shape.width_v);
  tile.keys_t = carver.take(shape.width_qk * kKeyStride);
  tile.values_t = carver.take(shape.width_v * kKeyStride);
  tile.dkeys_t = carver.take(shape.width_qk * kKeyStride);
  tile.dvalues_t = carver.take(shape.width_v * kKeyStride);
  tile.keys = carver.take(kBackwardKeys * tile.qk_stride);
  tile.queries = carver.take(kBackwardRows * tile.qk_stride);
  tile.douts = carver.take(kBackwardRows * tile.v_stride);
  tile.dq = carver.take(kBackwardRows * tile.qk_stride);
  tile.weights = carver.take(kBackwardRows * kKeyStride);
  tile.dscores = carver.take(kBackwardRows * kKeyStride);
  return tile;
}

inline std::int64_t backward_scratch_bytes(const AttentionShape& shape) {
  Carver carver(nullptr);
  carve_backward(shape, carver);
  return carver.bytes();
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

/// What one row of a step needs: lse in base 2, and the keys it sees, counted from the first of the tile. A row with
/// lse = -inf attends nothing: it sees none.
struct RowTerms {
  float lse, delta;
  std::int64_t from, to;
};

template <class S>
RowTerms terms_of(const BackwardProblem<S, float>& p, const BackwardStep& step, std::int64_t q) {
  const float lse = p.lse.data[q * p.lse.row + step.head * p.lse.head];
  const std::int64_t from = larger(step.band.k0, q + step.band.lo), to = smaller(step.band.k1, q + step.band.hi + 1);
  return {lse * kLog2E, p.delta.data[q * p.delta.row + step.head * p.delta.head], from - step.first_key,
          lse == -kInfinity ? from - step.first_key : to - step.first_key};
}

/// One row: scores and dP become weights P and dS (without the scale).
template <bool Masked>
void soften_row(const BackwardStep& step, const RowTerms& terms, float scale, float cap, float* weights, float* dscores) {
  const Ints lanes = lane_numbers();
  for (std::int64_t lane = step.begin; lane < step.end; lane += kLanes) {
    Vec s = load(weights + lane) * scale;
    Vec slope = Vec{} + 1.0f;
    if (cap > 0) {
      const Vec t = tanh(s);
      slope = 1.0f - t * t;
      s = cap * t;
    }
    Vec weight = exp2(s - terms.lse);
    Vec dscore = weight * (load(dscores + lane) - terms.delta);
    if (cap > 0) dscore *= slope;
    if constexpr (Masked) {
      const Ints key = lanes + static_cast<std::int32_t>(lane);
      const Ints seen = (key >= static_cast<std::int32_t>(terms.from)) & (key < static_cast<std::int32_t>(terms.to));
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
  for (std::int64_t q = step.band.q0; q < step.band.q1; ++q) {
    const RowTerms terms = terms_of(p, step, q);
    const std::int64_t row = (q - step.first_row) * kKeyStride;
    if (step.begin >= terms.from && step.end <= terms.to) {
      soften_row<false>(step, terms, scale, cap, tile.weights + row, tile.dscores + row);
    } else {
      soften_row<true>(step, terms, scale, cap, tile.weights + row, tile.dscores + row);
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

/// The products of rows and keys that were taken out of the packed tiles, with the pairs the band allows.
template <class S>
void add_outliers(const BackwardProblem<S, float>& p, const BackwardStep& step, const BackwardTile& tile, const Outliers& rows) {
  const std::int64_t kv = step.head / (p.shape.heads / p.shape.kv_heads);
  for (std::int64_t q = step.band.q0; q < step.band.q1; ++q) {
    const RowTerms terms = terms_of(p, step, q);
    const std::int64_t row = q - step.first_row;
    const float *weights = tile.weights + row * kKeyStride, *dscores = tile.dscores + row * kKeyStride;
    if (rows.row[row]) {
      add_outlier(p.dout.data + q * p.dout.row + step.head * p.dout.head, p.shape.width_v, weights, terms.from, terms.to, tile.dvalues_t,
                  kKeyStride);
      add_outlier(p.q.data + q * p.q.row + step.head * p.q.head, p.shape.width_qk, dscores, terms.from, terms.to, tile.dkeys_t, kKeyStride);
    }
    for (std::int64_t k = terms.from; tile.key_outliers.any && k < terms.to; ++k) {
      if (!tile.key_outliers.row[k]) continue;
      const S* key = p.k.data + (step.first_key + k) * p.k.row + kv * p.k.head;
      for (std::int64_t i = 0; i < p.shape.width_qk; ++i) tile.dq[row * tile.qk_stride + i] += dscores[k] * widened(key + i);
    }
  }
}

template <class S>
void backward_step(const BackwardProblem<S, float>& p, const BackwardStep& step, const BackwardTile& tile, const Outliers& outliers,
                   Pulse& pulse) {
  const std::int64_t d = p.shape.width_qk, e = p.shape.width_v;
  const std::int64_t row = step.band.q0 - step.first_row, rows = step.band.q1 - step.band.q0;
  const std::int64_t begin = step.begin, lanes = step.end - step.begin;
  const float* queries = tile.queries + row * tile.qk_stride;
  const float* douts = tile.douts + row * tile.v_stride;
  float* weights = tile.weights + row * kKeyStride + begin;
  float* dscores = tile.dscores + row * kKeyStride + begin;
  multiply<false>({queries, tile.qk_stride, 1}, tile.keys_t + begin, kKeyStride, d, rows, lanes, weights, kKeyStride, pulse);
  multiply<false>({douts, tile.v_stride, 1}, tile.values_t + begin, kKeyStride, e, rows, lanes, dscores, kKeyStride, pulse);
  soften_rows(p, step, tile);
  pulse.beat();
  clear_outliers(outliers, tile.queries, tile.qk_stride, d);
  clear_outliers(outliers, tile.douts, tile.v_stride, e);
  multiply<true>({douts, 1, tile.v_stride}, weights, kKeyStride, rows, e, lanes, tile.dvalues_t + begin, kKeyStride, pulse);
  multiply<true>({queries, 1, tile.qk_stride}, dscores, kKeyStride, rows, d, lanes, tile.dkeys_t + begin, kKeyStride, pulse);
  multiply<false>({dscores, kKeyStride, 1}, tile.keys + begin * tile.qk_stride, tile.qk_stride, lanes, rows, round_up(d, kLanes),
                  tile.dq + row * tile.qk_stride, tile.qk_stride, pulse);
  if (outliers.any || tile.key_outliers.any) add_outliers(p, step, tile, outliers);
}

/// The last key tile before `tile` that reaches this query tile, plus one; 0 if there is none.
inline std::int32_t turn_before(const BandList& list, std::int64_t tile) {
  std::int64_t turn = 0;
  for (std::int64_t b = 0; b < list.count; ++b) {
    const Band& band = list.bands[b];
    if (band.k0 / kBackwardKeys < tile) turn = larger(turn, smaller(tile - 1, (band.k1 - 1) / kBackwardKeys) + 1);
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

/// Packs rows [q0,q1) of a query tile and finds those with NaN or infinity.
template <class S>
Outliers pack_queries(const BackwardProblem<S, float>& p, const BackwardTile& tile, std::int64_t head, std::int64_t first_row,
                      std::int64_t q0, std::int64_t q1) {
  const std::int64_t row = q0 - first_row;
  Outliers outliers;
  if (!pack_rows(p.q.data + q0 * p.q.row + head * p.q.head, p.q.row, q1 - q0, p.shape.width_qk, tile.queries + row * tile.qk_stride,
                 tile.qk_stride)) {
    find_outliers(tile.queries, tile.qk_stride, row, q1 - q0, p.shape.width_qk, outliers);
  }
  if (!pack_rows(p.dout.data + q0 * p.dout.row + head * p.dout.head, p.dout.row, q1 - q0, p.shape.width_v, tile.douts + row * tile.v_stride,
                 tile.v_stride)) {
    find_outliers(tile.douts, tile.v_stride, row, q1 - q0, p.shape.width_v, outliers);
  }
  return outliers;
}

/// All bands of one query tile of one head.
template <class S>
void backward_query_tile(const BackwardProblem<S, float>& p, const BackwardItem& item, const BackwardTile& tile, std::int64_t head,
                         std::int64_t query_tile) {
  const BandList& list = item.query_tiles[query_tile];
  const std::int64_t first_row = query_tile * kBackwardRows;
  const std::int64_t last_key = item.first_key + item.keys;
  std::int64_t q0 = first_row + kBackwardRows, q1 = first_row;
  for (std::int64_t b = 0; b < list.count; ++b) {
    const Band band = cut_keys(list.bands[b], item.first_key, last_key);
    if (!has_pairs(band)) continue;
    q0 = smaller(q0, band.q0);
    q1 = larger(q1, band.q1);
  }
  if (q0 >= q1) return;
  Outliers outliers = pack_queries(p, tile, head, first_row, q0, q1);
  item.progress.call(item.progress.context);
  Pulse pulse{item.progress};
  const std::int64_t next = first_row + kBackwardRows, next_end = smaller(next + kBackwardRows, p.shape.query_rows);
  pulse.ahead[0] = rows_ahead(p.q, next, next_end, head, p.shape.width_qk);
  pulse.ahead[1] = rows_ahead(p.dout, next, next_end, head, p.shape.width_v);
  pulse.ahead[2] = rows_ahead(p.dq, q0, q1, head, p.shape.width_qk);
  std::int32_t* turn = item.turns + head * item.query_tile_count + query_tile;
  const std::int32_t expected = turn_before(list, item.tile);
  for (std::int64_t b = 0; b < list.count; ++b) {
    const Band band = cut_keys(list.bands[b], item.first_key, last_key);
    if (!has_pairs(band)) continue;
    const BackwardStep step{
        band, head, first_row, item.first_key, round_down(band.k0 - item.first_key, kLanes), round_up(band.k1 - item.first_key, kLanes)};
    backward_step(p, step, tile, outliers, pulse);
    item.progress.call(item.progress.context);
    wait_for_turn(turn, expected, item.progress);
    add_dq(p, step, tile);
    if (outliers.any) outliers = pack_queries(p, tile, head, first_row, q0, q1);  // the step has cleared them
  }
  __atomic_store_n(turn, static_cast<std::int32_t>(item.tile + 1), __ATOMIC_RELEASE);
}

template <class S>
void pack_key_tile(const BackwardProblem<S, float>& p, const BackwardItem& item, BackwardTile& tile) {
  const AttentionShape& shape = p.shape;
  const S* keys = p.k.data + item.first_key * p.k.row + item.kv_head * p.k.head;
  const S* values = p.v.data + item.first_key * p.v.row + item.kv_head * p.v.head;
  if (!pack_rows(keys, p.k.row, item.keys, shape.width_qk, tile.keys, tile.qk_stride)) {
    find_outliers(tile.keys, tile.qk_stride, 0, item.keys, shape.width_qk, tile.key_outliers);
    clear_outliers(tile.key_outliers, tile.keys, tile.qk_stride, shape.width_qk);
  }
  // Lanes past the last key are multiplied by weights of 0, so they must hold numbers.
  const std::int64_t padding = round_up(item.keys, kLanes) - item.keys;
  __builtin_memset(tile.keys + item.keys * tile.qk_stride, 0, static_cast<std::size_t>(padding * tile.qk_stride) * sizeof(float));
  item.progress.call(item.progress.context);
  pack_transposed(keys, p.k.row, item.keys, shape.width_qk, 1.0f, tile.keys_t, kKeyStride);
  item.progress.call(item.progress.context);
  pack_transposed(values, p.v.row, item.keys, shape.width_v, 1.0f, tile.values_t, kKeyStride);
  item.progress.call(item.progress.context);
  __builtin_memset(tile.dkeys_t, 0, static_cast<std::size_t>(shape.width_qk * kKeyStride) * sizeof(float));
  __builtin_memset(tile.dvalues_t, 0, static_cast<std::size_t>(shape.width_v * kKeyStride) * sizeof(float));
}

/// algorithms.md 1.2 for one key tile: five products per pair of tiles.
template <class S>
void backward_tile(const BackwardProblem<S, float>& p, const BackwardItem& item) {
  const AttentionShape& shape = p.shape;
  if (item.first_query_tile > item.last_query_tile && !p.overwrite_dkdv) return;
  Carver carver(item.scratch);
  BackwardTile tile = carve_backward(shape, carver);
  pack_key_tile(p, item, tile);
  const std::int64_t group = shape.heads / shape.kv_heads;
  for (std::int64_t head = item.kv_head * group; head < (item.kv_head + 1) * group; ++head) {
    for (std::int64_t t = item.first_query_tile; t <= item.last_query_tile; ++t) backward_query_tile(p, item, tile, head, t);
  }
  float* factor = tile.weights;
  for (std::int64_t i = 0; i < kBackwardKeys; ++i) factor[i] = static_cast<float>(p.scale);
  unpack_transposed(tile.dkeys_t, kKeyStride, item.keys, shape.width_qk, factor, !p.overwrite_dkdv,
                    p.dk.data + item.first_key * p.dk.row + item.kv_head * p.dk.head, p.dk.row);
  item.progress.call(item.progress.context);
  for (std::int64_t i = 0; i < kBackwardKeys; ++i) factor[i] = 1;
  unpack_transposed(tile.dvalues_t, kKeyStride, item.keys, shape.width_v, factor, !p.overwrite_dkdv,
                    p.dv.data + item.first_key * p.dv.row + item.kv_head * p.dv.head, p.dv.row);
}

}  // namespace
}  // namespace periplus::kernels::cpu
