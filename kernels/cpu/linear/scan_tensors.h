// What a scan (scan.h) works on, and the products of its outputs that backward takes the gradients of decays from.
//
// Such a gradient is a sum of q dq - k dk in which most cancels: what a pair of tokens adds to the one it adds to the other. So it must be
// the same number in both. The scan that makes dq rounds keys as its values, the one that makes dk queries; each therefore takes the
// products of its outputs, in f32, with what the other has rounded.
#pragma once

#include "kernels/cpu/bf16/pack.h"
#include "kernels/cpu/linear/rows.h"

namespace periplus::kernels::cpu {
namespace {

constexpr std::int64_t kScanRows = Unit::kHasTiles ? 128 : 64;  ///< Of a chunk of a scan. Larger ones take more products.

/// Rows of a tensor by chunks. The last may be a copy that has zeros for rows that do not exist.
template <class T>
struct ChunkRows {
  HeadRows<T> rows;
  T* tail = nullptr;
  std::int64_t tail_chunk = -1, tail_stride = 0;

  HeadRows<T> of(std::int64_t chunk) const {
    if (chunk == tail_chunk) return {tail, tail_stride};
    return {rows.data + chunk * kScanRows * rows.stride, rows.stride};
  }
  /// Where row i of that copy belongs.
  T* home(std::int64_t i) const { return rows.data + (tail_chunk * kScanRows + i) * rows.stride; }
};

/// What carries the decays: outputs and values by a number for each row, or one of the sides channel by channel.
enum class DecayOf { rows, keys, values };

struct GroupDecay {
  float* factor;  ///< f: [rows] or [rows][width]
  float* total;   ///< [width]
  std::int64_t width;
};

template <class S>
struct ScanTensors {
  ChunkRows<const S> q, k, v;
  ChunkRows<S> out;
  std::int64_t width_qk, width_v;  ///< Multiples of 32.
  float value_scale, out_scale;
  /// A scan with products also makes those of its outputs, before they are rounded, with these rows, rounded as they are as values of the
  /// scan in the other order, whose value_scale is partner_scale. Each pair of tokens is then the same number in both.
  ChunkRows<const S> partner = {};
  float partner_scale = 1;
  /// Over the total decay: [rows][16], to be summed; with a decay per channel [rows][width_v], from which a falling scan subtracts.
  ChunkRows<float> products = {};
};

/// The same place in the next chunk: rows are short pieces far apart, which the hardware does not foresee.
template <bool kFalling, class T>
[[gnu::always_inline]] inline void fetch_next(const T* at, std::int64_t stride) {
  __builtin_prefetch(at + (kFalling ? -kScanRows : kScanRows) * stride, 0, 2);
}

/// x rounded to bf16, as values are.
inline Vec rounded(Vec x) { return Vec(Unit::pair(Vec{}, x)); }

/// Products of two rows of a square of outputs with those of the partner.
template <class S, DecayOf kDecay, bool kFalling>
struct ProductPart {
  const S* partner;
  float* to;
  std::int64_t stride, next;
  const float* total;  ///< Of the columns' decays.
  float scale;         ///< With one decay for the head, over its total.
  bool first;          ///< Of the columns.

  /// One row, of which low and high are the square's 32 columns before their factors.
  [[gnu::always_inline]] void add(Vec low, Vec high, const float* factor) {
    fetch_next<kFalling>(partner, stride);
    if constexpr (kDecay == DecayOf::rows) {
      const Vec grown = splat(scale * *factor);
      const Vec sum = low * rounded(load(partner) * grown) + high * rounded(load(partner + kLanes) * grown);
      store(to, first ? sum : load(to) + sum);
    } else {
      for (std::int64_t half = 0; half < 2; ++half) {
        const Vec grown = scale * Unit::reciprocal(load(total + half * kLanes)) * load(factor + half * kLanes);
        const Vec product = (half == 0 ? low : high) * rounded(load(partner + half * kLanes) * grown);
        store(to + half * kLanes, kFalling ? load(to + half * kLanes) - product : product);
      }
    }
    partner += stride;
    to += next;
  }
};
struct NoProductPart {
  static void add(Vec, Vec, const float*) {}
};

}  // namespace
}  // namespace periplus::kernels::cpu
