// Decays inside a chunk. Included by runs.h.
//
// They are kept as products of the factors exp(log_decay) of neighbouring tokens, never as differences of sums of logarithms:
// all numbers are in [0,1], a strong decay ends at 0, and one token that forgets everything takes no digits from the others.
#pragma once

#include "kernels/cpu/linear/rows.h"

namespace periplus::kernels::cpu {
namespace {

/// A chunk that keeps this much in every channel is mild: dividing by its decays overflows nowhere, and takes no digits.
constexpr float kMild = 1e-12f;

/// Row i of a factor is one number, or with a decay per channel a vector.
struct Decay {
  std::int64_t width;  ///< 0: none; 1: per head; else per channel.
  Matrix step;         ///< exp(log_decay_i)
  Matrix up;           ///< From before the chunk to behind token i: product of steps 0..i.
  Matrix down;         ///< From behind token i to the end of the chunk.
  Matrix back;         ///< Per channel, of mild chunks: 1 / up.
  Matrix between;      ///< [i][j] j <= i, from behind token j to behind token i, else 0; not per channel.
  bool mild;

  bool per_channel() const { return width > 1; }
  bool per_head() const { return width == 1; }
  /// Whether decays between tokens are computed strip by strip (scores.h).
  bool in_strips() const { return per_channel() && !mild; }
};

inline Decay carve_decay(const LinearShape& shape, std::int64_t padded_width, Carver& carver) {
  constexpr std::int64_t kChunk = linear::kChunk;
  Decay decay;
  // A head of one channel has a decay per head: its elements are the same.
  decay.width = shape.decay_width;
  const auto factors = [&]() { return decay.per_channel() ? carve_matrix(carver, kChunk, padded_width) : Matrix{carver.take(kChunk), 1}; };
  decay.step = factors();
  decay.up = factors();
  decay.down = factors();
  decay.back = decay.per_channel() ? factors() : Matrix{nullptr, 0};
  decay.between = decay.per_channel() ? Matrix{nullptr, 0} : carve_matrix(carver, kChunk, kChunk);
  return decay;
}

/// A decay below 1e-30 becomes 0: products of smaller ones are subnormal, for each of which Intel cores stop for 150 cycles.
inline Vec flushed(Vec decay) { return decay < splat(1e-30f) ? Vec{} : decay; }
inline float flushed(float decay) { return decay < 1e-30f ? 0.0f : decay; }

inline Vec step_of(Vec log_decay) { return flushed(exp2(log_decay * kLog2E)); }

/// between[i] = step_i between[i-1], with 1 on the diagonal. The columns' chains of products run side by side.
inline void fill_between(const Decay& decay, std::int64_t rows) {
  constexpr std::int64_t kVectors = linear::kChunk / kLanes;
  const Ints lanes = lane_numbers();
  Vec x[kVectors] = {};
  for (std::int64_t i = 0; i < rows; ++i) {
    const float step = decay.step.data[i];
#pragma GCC unroll 16
    for (std::int64_t j = 0; j < kVectors; ++j) {
      x[j] = lanes == static_cast<std::int32_t>(i - j * kLanes) ? splat(1.0f) : flushed(x[j] * step);
      store(decay.between.row(i) + j * kLanes, x[j]);
    }
  }
}

/// Factors of one or several vectors of channels: their chains of products run side by side. Returns the least decay of the chunk.
template <int Vectors>
Vec fill_factors(HeadRows<const float> log_decay, const Extent& extent, std::int64_t channel, const Decay& decay) {
  Vec up[Vectors], down[Vectors], inverse[Vectors], least = splat(1.0f);
  for (Vec& x : up) x = splat(1.0f);
  for (std::int64_t i = 0; i < extent.padded_rows; ++i) {
#pragma GCC unroll 8
    for (int n = 0; n < Vectors; ++n) {
      const std::int64_t d = channel + n * kLanes;
      const Vec step = i < extent.rows && d < extent.width ? step_of(load_some(log_decay.data + i * log_decay.stride + d, extent.width - d))
                                                           : splat(1.0f);
      up[n] = flushed(up[n] * step);
      store(decay.step.row(i) + d, step);
      store(decay.up.row(i) + d, up[n]);
    }
  }
  for (int n = 0; n < Vectors; ++n) {
    least = up[n] < least ? up[n] : least;
    inverse[n] = 1.0f / up[n];
    down[n] = splat(1.0f);
  }
  for (std::int64_t i = extent.padded_rows - 1; i >= 0; --i) {
#pragma GCC unroll 8
    for (int n = 0; n < Vectors; ++n) {
      const std::int64_t d = channel + n * kLanes;
      store(decay.down.row(i) + d, down[n]);
      store(decay.back.row(i) + d, down[n] * inverse[n]);
      down[n] = flushed(down[n] * load(decay.step.row(i) + d));
    }
  }
  return least;
}

/// Rows that do not exist decay by 1. The first token of a document has nothing to decay.
inline void load_decay(HeadRows<const float> log_decay, const Extent& extent, Decay& decay) {
  if (decay.per_channel()) {
    Vec least = splat(1.0f);
    const auto keep = [&](Vec other) { least = other < least ? other : least; };
    std::int64_t d = 0;
    for (; d + 4 * kLanes <= extent.padded_width; d += 4 * kLanes) keep(fill_factors<4>(log_decay, extent, d, decay));
    for (; d < extent.padded_width; d += kLanes) keep(fill_factors<1>(log_decay, extent, d, decay));
    decay.mild = !any(least < splat(kMild));
    return;
  }
  float* step = decay.step.data;
  for (std::int64_t i = 0; i < extent.padded_rows; ++i)
    step[i] = decay.width > 0 && i < extent.rows ? log_decay.data[i * log_decay.stride] : 0;
  for (std::int64_t i = 0; i < extent.padded_rows; i += kLanes) store(step + i, step_of(load(step + i)));
  fill_between(decay, extent.padded_rows);
  for (std::int64_t i = 0; i < extent.padded_rows; ++i) decay.up.data[i] = flushed(step[0] * decay.between.row(i)[0]);
  const float* last = decay.between.row(extent.padded_rows - 1);
  for (std::int64_t j = 0; j < extent.padded_rows; j += kLanes) store(decay.down.data + j, load(last + j));
}

/// `factors` (up or down) times the rows of `from`: in `to`, or `from` itself where nothing decays.
inline Matrix decayed(const Decay& decay, Matrix factors, Matrix from, std::int64_t rows, std::int64_t width, Matrix to) {
  if (decay.width == 0) return from;
  if (decay.per_channel()) {
    multiply_elements(factors, from, rows, width, to);
  } else {
    scale_rows(factors.data, from, rows, width, to);
  }
  return to;
}

/// Of the whole chunk, for each row of the state, or for all of them, or none.
struct StateDecay {
  const float* factors;
  std::int64_t next;
};
inline StateDecay state_decay(const Decay& decay, std::int64_t chunk_rows) {
  if (decay.width == 0) return {nullptr, 0};
  return {decay.up.row(chunk_rows - 1), decay.per_channel() ? 1 : 0};
}

/// state := decay of the whole chunk, times state.
inline void decay_state(const Decay& decay, std::int64_t chunk_rows, std::int64_t rows, std::int64_t columns, Matrix state) {
  if (decay.width == 0) return;
  const float* total = decay.up.row(chunk_rows - 1);
  for (std::int64_t d = 0; d < rows; ++d) {
    const float factor = total[decay.per_channel() ? d : 0];
    for (std::int64_t e = 0; e < columns; e += kLanes) store(state.row(d) + e, factor * load(state.row(d) + e));
  }
}

}  // namespace
}  // namespace periplus::kernels::cpu
