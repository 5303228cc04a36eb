// Linear attention over a group of chunks of one head, on tiles, in rising or falling order. Included by groups.h.
//
// The decays of a group are mild (decay.h), so that one base serves it all: with f_i the decay from before the group to behind token i,
//   out_i = f_i (q_i S + sum over j <= i of (q_i k_j) v_j / f_j),   S := total (S + sum over j of k_j v_j^T / f_j),
// and inside the group the state only grows, where it lies, in the accumulators. In falling order j >= i, and f_i is the decay from
// behind token i to the end of the group. Decays per channel of the keys are factors of q and k, those per channel of the values of v
// and out.
//
// What bounds a chunk is the traffic between the first two caches, 28 bytes a cycle both ways together: so on tiles they have 128 rows,
// which halves that of the state (64 KiB in f32 and 32 KiB packed), and both products with it go by halves of their left operand (16 KiB),
// which stay in the first-level cache while the other passes.
#pragma once

#include <type_traits>

#include "kernels/cpu/linear/scan_tensors.h"
#include "kernels/cpu/linear/squares.h"
#include "kernels/cpu/linear/sweep.h"

namespace periplus::kernels::cpu {
namespace {

constexpr std::int64_t kScanHalf = 64;  ///< Rows of a left operand that are used together.

/// Rows of a group, at most, and of one without factors for each channel in forward. Each end of a group costs a pass over the state; but
/// such factors, and what backward reads twice in a group, shall stay in the second-level cache.
constexpr std::int64_t kGroupRows = 512, kLongGroupRows = 1024;
constexpr std::int64_t forward_group_rows(std::int64_t decay_width) { return decay_width > 1 ? kGroupRows : kLongGroupRows; }

/// S, and its operand.
struct ScanState {
  Matrix state;
  bfloat16* packed;
};

/// Operands of a chunk.
struct ScanSpace {
  bfloat16 *queries, *keys, *values, *scores;  ///< Tiles of q, left; of k^T, left; of v, right; of q k^T, left.
  bfloat16* across;                            ///< Tiles of k^T, right.
  float* sums;                                 ///< [2][32][32]
};

inline ScanSpace carve_scan(std::int64_t width_qk, std::int64_t width_v, bool decays_keys, Carver& carver) {
  ScanSpace on = {};
  on.queries = carver.take<bfloat16>(decays_keys ? kScanRows * width_qk : 0);
  on.keys = carver.take<bfloat16>(kScanRows * width_qk);
  on.values = carver.take<bfloat16>(kScanRows * width_v);
  on.scores = carver.take<bfloat16>(kScanRows * kScanRows);
  on.across = carver.take<bfloat16>(kScanRows * width_qk);
  on.sums = carver.take(2 * 32 * 32);
  return on;
}

inline void pack_state(const ScanState& on, std::int64_t rows, std::int64_t columns) {
  for (std::int64_t column = 0; column < columns; column += 16) {
    for (std::int64_t row = 0; row < rows; row += 2) {
      const float* at = on.state.row(row) + column;
      store_bits(on.packed + (column / 16 * rows + row) * 16, Vec(Unit::pair(load(at), load(at + on.state.stride))));
    }
  }
}

template <class S, DecayOf kDecay, bool kFalling, bool kProducts>
class Scan {
  static constexpr std::int64_t kSteps = kScanRows / 32;

 public:
  Scan(const ScanTensors<S>& tensors, const GroupDecay& decay, std::int64_t rows, const ScanState& state, const ScanSpace& on, Pulse& pulse)
      : t_(tensors),
        decay_(decay),
        rows_(rows),
        chunks_((rows + kScanRows - 1) / kScanRows),
        steps_(tensors.width_qk / 32),
        state_(state),
        on_(on),
        pulse_(pulse) {}

  void run() {
    for (std::int64_t i = 0; i < chunks_; ++i) {
      const std::int64_t chunk = kFalling ? chunks_ - 1 - i : i;
      if constexpr (kDecay == DecayOf::keys) pack_queries(chunk);
      pack_keys(chunk);
      pack_values(chunk);
      Unit::fence();
      make_scores(chunk);
      pulse_.beat();
      make_outputs(chunk);
      pulse_.beat();
      grow_state(chunk, i + 1 == chunks_);
      pulse_.beat();
    }
  }

 private:
  /// Of a chunk, those that do not exist up to whole tiles included.
  std::int64_t rows(std::int64_t chunk) const { return smaller(kScanRows, round_up(rows_ - chunk * kScanRows, 32)); }
  const float* factor(std::int64_t chunk, std::int64_t row) const { return decay_.factor + (chunk * kScanRows + row) * decay_.width; }

  /// 32 tokens x 32 columns of keys, divided by their decay if they carry one: then as a copy in `space`.
  [[gnu::always_inline]] HeadRows<const S> key_square(std::int64_t chunk, std::int64_t token, std::int64_t d, S* space) const {
    const HeadRows<const S> k = t_.k.of(chunk);
    const S* from = k.data + token * k.stride + d;
    for (std::int64_t i = 0; i < 32; ++i) fetch_next<kFalling>(from + i * k.stride, k.stride);
    if constexpr (kDecay != DecayOf::keys) return {from, k.stride};
    const float* f = factor(chunk, token) + d;
    for (std::int64_t i = 0; i < 32; ++i, from += k.stride, f += decay_.width) {
      store_bits(space + i * 32,
                 Vec(Unit::narrow(load(from) * Unit::reciprocal(load(f)), load(from + kLanes) * Unit::reciprocal(load(f + kLanes)))));
    }
    return {space, 32};
  }
  /// Four columns at a time, which stay in registers. Sums over tokens take them in the order n, 16 + n: so rows of k^T come from two tiles
  /// of `across` without a shuffle.
  void pack_keys(std::int64_t chunk) {
    alignas(64) S space[32 * 32];
    for (std::int64_t token = 0; token < rows(chunk); token += 32) {
      for (std::int64_t step = 0; step < steps_; ++step) {
        bfloat16* across = on_.across + (token / 16 * steps_ + step) * kTile;
        bfloat16* rows = on_.keys + (step * 2 * kSteps + token / 32) * kTile;
        const HeadRows<const S> k = key_square(chunk, token, step * 32, space);
#pragma GCC unroll 4
        for (std::int64_t column = 0; column < 16; column += 4) {
          Vec low[4], high[4];
          Unit::transpose_words(k.data + 2 * column, 2 * k.stride, low);
          Unit::transpose_words(k.data + 16 * k.stride + 2 * column, 2 * k.stride, high);
#pragma GCC unroll 4
          for (std::int64_t i = 0; i < 4; ++i) {
            store_bits(across + (column + i) * 32, low[i]);
            store_bits(across + steps_ * kTile + (column + i) * 32, high[i]);
            bfloat16* to = rows + column / 8 * kSteps * kTile + (2 * (column + i)) % 16 * 32;
            store_bits(to, Vec(Unit::lower_halves(Words(low[i]), Words(high[i]))));
            store_bits(to + 32, Vec(Unit::upper_halves(Words(low[i]), Words(high[i]))));
          }
        }
      }
    }
  }

  /// One over the decay of a row of values, times the scale; of 16 columns of it if they carry their own.
  [[gnu::always_inline]] Vec value_factor(const float* f, Vec of_row, std::int64_t column) const {
    if constexpr (kDecay == DecayOf::values) return t_.value_scale * Unit::reciprocal(load(f + column));
    return of_row;
  }
  void pack_values(std::int64_t chunk) {
    const HeadRows<const S> v = t_.v.of(chunk);
    const std::int64_t width = t_.width_v;
    const auto of_row = [&](const float* f) { return splat(kDecay == DecayOf::rows ? t_.value_scale / *f : t_.value_scale); };
    for (std::int64_t pair = 0; pair < rows(chunk) / 2; ++pair) {
      const std::int64_t row = pair / 16 * 32 + pair % 16;
      const S *first = v.data + row * v.stride, *second = first + 16 * v.stride;
      const float *first_f = factor(chunk, row), *second_f = factor(chunk, row + 16);
      const Vec first_factor = of_row(first_f), second_factor = of_row(second_f);
      bfloat16* to = on_.values + row / 32 * kTile + row % 32 * 32;
      for (std::int64_t e = 0; e < width; e += 32) {
        fetch_next<kFalling>(first + e, v.stride);
        fetch_next<kFalling>(second + e, v.stride);
        for (std::int64_t half = 0; half < 2; ++half, to += kSteps * kTile) {
          const std::int64_t column = e + half * kLanes;
          const Vec low = load(first + column) * value_factor(first_f, first_factor, column);
          const Vec high = load(second + column) * value_factor(second_f, second_factor, column);
          store_bits(to, Vec(Unit::pair(low, high)));
        }
      }
    }
  }

  /// Queries from row `row` of the chunk on, times their decay if they carry one.
  Operands queries(std::int64_t chunk, std::int64_t row, const bfloat16* b) const {
    if constexpr (kDecay == DecayOf::keys) {
      return {on_.queries + row / 16 * steps_ * kTile, b, steps_ * kTile, steps_ * kTile, kTile, 64, steps_};
    }
    const HeadRows<const S> q = t_.q.of(chunk);
    return {q.data + row * q.stride, b, 16 * q.stride, steps_ * kTile, 32, 2 * q.stride, steps_};
  }
  void pack_queries(std::int64_t chunk) const {
    const HeadRows<const S> q = t_.q.of(chunk);
    for (std::int64_t i = 0; i < rows(chunk); ++i) {
      const float* f = factor(chunk, i);
      bfloat16* to = on_.queries + i / 16 * steps_ * kTile + i % 16 * 32;
      for (std::int64_t d = 0; d < t_.width_qk; d += 32) {
        const S* from = q.data + i * q.stride + d;
        fetch_next<kFalling>(from, q.stride);
        store_bits(to + d / 32 * kTile, Vec(Unit::narrow(load(from) * load(f + d), load(from + kLanes) * load(f + d + kLanes))));
      }
    }
  }

  /// Two rows of a square of q k^T: of one on the diagonal what lies in its triangle.
  struct ScorePart {
    const float* from;
    bfloat16* to;
    std::int32_t diagonal;  ///< Column of the diagonal in the row.
    bool whole;

    [[gnu::always_inline]] void operator()() {
      const Ints lanes = lane_numbers();
      for (std::int64_t r = 0; r < 2; ++r, from += 32, to += 32, ++diagonal) {
        Vec low = load(from), high = load(from + kLanes);
        if (!whole) {
          const Ints beyond = lanes - diagonal;
          low = (kFalling ? beyond >= 0 : beyond <= 0) ? low : Vec{};
          high = (kFalling ? beyond >= -16 : beyond <= -16) ? high : Vec{};
        }
        store_bits(to, Vec(Unit::pair(low, high)));
      }
      if (diagonal == 16) to += (kSteps - 1) * kTile;  // The tile of the next 16 rows.
    }
  };
  /// The triangle of q k^T.
  void make_scores(std::int64_t chunk) {
    SquareWork<ScorePart> work;
    std::int64_t count = 0;
    for (std::int64_t row = 0; row < rows(chunk); row += 32) {
      const std::int64_t first = kFalling ? row : 0, end = kFalling ? rows(chunk) : row + 32;
      for (std::int64_t column = first; column < end; column += 32, ++count) {
        const Operands on = queries(chunk, row, on_.across + column / 16 * steps_ * kTile);
        const Matrix sums = square_sums(count);
        work.spread(on.steps * 4 - 4);
        squares_.template begin<false>(on, sums, work);
        work.rest();
        work.start({sums.data, on_.scores + (row / 16 * kSteps + column / 32) * kTile, 0, row != column});
      }
    }
    squares_.flush();
    work.rest();
    Unit::fence();
  }
  Matrix square_sums(std::int64_t count) const { return {on_.sums + count % 2 * 32 * 32, 32}; }

  using Products = std::conditional_t<kProducts, ProductPart<S, kDecay, kFalling>, NoProductPart>;

  /// Two rows of a square of outputs.
  struct OutPart {
    const float* from;
    S* to;
    std::int64_t stride;
    const float* factor;  ///< Of the row, or of its columns.
    std::int64_t next_factor;
    float scale;
    [[no_unique_address]] Products products;

    [[gnu::always_inline]] void operator()() {
      for (std::int64_t r = 0; r < 2; ++r, from += 32, to += stride, factor += next_factor) {
        fetch_next<kFalling>(to, stride);
        Vec low = load(from), high = load(from + kLanes);
        products.add(low, high, factor);
        if constexpr (kDecay == DecayOf::values) {
          low *= scale * load(factor);
          high *= scale * load(factor + kLanes);
        } else {
          const Vec both = splat(kDecay == DecayOf::keys ? scale : scale * *factor);
          low *= both;
          high *= both;
        }
        store_bits(to, Vec(Unit::narrow(low, high)));
      }
    }
  };
  /// Two rows of a square of the state, which becomes an operand.
  struct StatePart {
    float* from;
    std::int64_t stride;
    bfloat16* to;
    std::int64_t next;   ///< From a tile to that of the next 16 columns.
    const float* total;  ///< Behind the last chunk: what the state decays by; else null.

    [[gnu::always_inline]] void operator()() {
      if (total != nullptr) {
        decay_rows(from, stride, total);
        if constexpr (kDecay == DecayOf::keys) total += 2;
      }
      for (std::int64_t half = 0; half < 2; ++half) {
        store_bits(to + half * next, Vec(Unit::pair(load(from + half * kLanes), load(from + stride + half * kLanes))));
      }
      from += 2 * stride;
      to += 32;
    }
  };
  [[gnu::noinline]] static void decay_rows(float* from, std::int64_t stride, const float* total) {
    for (std::int64_t r = 0; r < 2; ++r) {
      for (std::int64_t half = 0; half < 2; ++half) {
        float* at = from + r * stride + half * kLanes;
        store(at, load(at) * (kDecay == DecayOf::values ? load(total + half * kLanes) : splat(total[kDecay == DecayOf::keys ? r : 0])));
      }
    }
  }

  Products products(std::int64_t chunk, std::int64_t row, std::int64_t column) const {
    if constexpr (!kProducts) {
      return {};
    } else {
      const HeadRows<const S> partner = t_.partner.of(chunk);
      const HeadRows<float> to = t_.products.of(chunk);
      const std::int64_t channel = kDecay == DecayOf::values ? column : 0;
      return {partner.data + row * partner.stride + column,
              to.data + row * to.stride + channel,
              partner.stride,
              to.stride,
              decay_.total + channel,
              kDecay == DecayOf::rows ? t_.partner_scale / *decay_.total : t_.partner_scale,
              column == 0};
    }
  }

  void make_outputs(std::int64_t chunk) {
    SquareWork<OutPart> work;
    const HeadRows<S> out = t_.out.of(chunk);
    std::int64_t count = 0;
    for (std::int64_t half = 0; half < rows(chunk); half += kScanHalf) {
      for (std::int64_t column = 0; column < t_.width_v; column += 32) {
        const bfloat16* values = on_.values + column / 16 * kSteps * kTile;
        for (std::int64_t row = half; row < smaller(half + kScanHalf, rows(chunk)); row += 32, ++count) {
          const std::int64_t first = kFalling ? row / 32 : 0, end = kFalling ? rows(chunk) / 32 : row / 32 + 1;
          const Operands with_state = queries(chunk, row, state_.packed + column / 16 * steps_ * kTile);
          const Operands with_values{on_.scores + (row / 16 * kSteps + first) * kTile,
                                     values + first * kTile,
                                     kSteps * kTile,
                                     kSteps * kTile,
                                     kTile,
                                     64,
                                     end - first};
          const Matrix sums = square_sums(count);
          work.spread((with_state.steps + with_values.steps - 1) * 4);
          squares_.template begin<false>(with_state, sums, work);
          Squares::accumulate(with_values, 0, work);
          work.rest();
          work.start({sums.data, out.data + row * out.stride + column, out.stride,
                      factor(chunk, row) + (kDecay == DecayOf::values ? column : 0), decay_.width, t_.out_scale,
                      products(chunk, row, column)});
        }
        pulse_.beat();
      }
    }
    squares_.flush();
    work.rest();
  }

  /// The state behind the chunk; `last`: and behind the group.
  void grow_state(std::int64_t chunk, bool last) {
    SquareWork<StatePart> work;
    for (std::int64_t half = 0; half < t_.width_qk; half += kScanHalf) {
      for (std::int64_t column = 0; column < t_.width_v; column += 32) {
        const std::int64_t end = smaller(half + kScanHalf, t_.width_qk);
        for (std::int64_t d = half; d < end; d += 32) {
          const Operands on{on_.keys + d / 16 * kSteps * kTile,
                            on_.values + column / 16 * kSteps * kTile,
                            kSteps * kTile,
                            kSteps * kTile,
                            kTile,
                            64,
                            rows(chunk) / 32};
          const Matrix square = state_.state.below(d).beside(column);
          work.spread(on.steps * 4 - 4);
          squares_.template begin<true>(on, square, work);
          work.rest();
          const float* total = decay_.total + (kDecay == DecayOf::keys ? d : kDecay == DecayOf::values ? column : 0);
          work.start({square.data, square.stride, state_.packed + (column / 16 * steps_ + d / 32) * kTile, steps_ * kTile,
                      last ? total : nullptr});
        }
        pulse_.beat();
      }
    }
    squares_.flush();
    work.rest();
    Unit::fence();
  }

  const ScanTensors<S>& t_;
  const GroupDecay& decay_;
  std::int64_t rows_, chunks_, steps_;
  const ScanState& state_;
  const ScanSpace& on_;
  Pulse& pulse_;
  Squares squares_;
};

}  // namespace
}  // namespace periplus::kernels::cpu
