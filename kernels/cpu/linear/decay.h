// Decays inside a chunk. Included by runs.h.
//
// They are kept as products of the factors exp(log_decay) of neighbouring tokens, never as differences of sums of logarithms:
// all numbers are in [0,1], a strong decay ends at 0, and one token that forgets everything takes no digits from the others.
#pragma once

#include "kernels/cpu/linear/rows.h"

namespace periplus::kernels::cpu {
namespace {

/// Row i of a factor is one number, or with a decay per channel a vector.
struct Decay {
  std::int64_t width;  ///< 0: none; 1: per head; else per channel.
  Matrix step;         ///< exp(log_decay_i)
  Matrix up;           ///< From before the chunk to behind token i: product of steps 0..i.
  Matrix down;         ///< From behind token i to the end of the chunk.
  Matrix between;      ///< [i][j] j <= i, from behind token j to behind token i, else 0; not per channel.

  bool per_channel() const { return width > 1; }
  bool per_head() const { return width == 1; }
};

inline Decay carve_decay(const LinearShape& shape, std::int64_t padded_width, Carver& carver) {
  constexpr std::int64_t kChunk = linear::kChunk;
  Decay decay;
  // A head of one channel has a decay per head: its elements are the same.
  decay.width = shape.decay_width;
  const auto factors = [&]() { return decay.per_channel() ? carver.matrix(kChunk, padded_width) : Matrix{carver.take(kChunk), 1}; };
  decay.step = factors();
  decay.up = factors();
  decay.down = factors();
  decay.between = decay.per_channel() ? Matrix{nullptr, 0} : carver.matrix(kChunk, kChunk);
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

/// Products of steps upwards and downwards, for `width` neighbouring columns of whole vectors.
inline void fill_factors(const Decay& decay, std::int64_t rows, std::int64_t width) {
  for (std::int64_t d = 0; d < width; d += kLanes) {
    Vec up = splat(1.0f), down = splat(1.0f);
    for (std::int64_t i = 0; i < rows; ++i) {
      up = flushed(up * load(decay.step.row(i) + d));
      store(decay.up.row(i) + d, up);
    }
    for (std::int64_t i = rows - 1; i >= 0; --i) {
      store(decay.down.row(i) + d, down);
      down = flushed(down * load(decay.step.row(i) + d));
    }
  }
}

/// Rows that do not exist decay by 1. The first token of a document has nothing to decay.
inline void load_decay(HeadRows<const float> log_decay, const Extent& extent, const Decay& decay) {
  if (decay.per_channel()) {
    load_rows(log_decay, extent, 1.0f, decay.step);
    for (std::int64_t i = 0; i < extent.padded_rows; ++i) {
      for (std::int64_t d = 0; d < extent.padded_width; d += kLanes) store(decay.step.row(i) + d, step_of(load(decay.step.row(i) + d)));
    }
    return fill_factors(decay, extent.padded_rows, extent.padded_width);
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
