// Both passes over groups of chunks, on tiles: each is one or more scans. Included by level_amx.cpp and its twin before runs.h.
//
//   out = scan(q, k, v) from the state S;  dq = scan(dout, v, k) from S^T;
//   dv = falling scan(k, q, dout) from dS; dk = falling scan(v, dout, q) from dS^T.
#pragma once

#include <utility>

#include "kernels/cpu/bf16/softmax.h"
#include "kernels/cpu/linear/scan.h"

namespace periplus::kernels::cpu {
namespace {

/// Of one number a row, in all lanes. In four sums side by side: an addition takes four cycles.
inline Vec sum_of_rows(HeadRows<const float> from, std::int64_t row, std::int64_t end) {
  Vec sums[4] = {};
  for (; row + 4 <= end; row += 4) {
#pragma GCC unroll 4
    for (std::int64_t i = 0; i < 4; ++i) sums[i] += from.data[(row + i) * from.stride];
  }
  for (; row < end; ++row) sums[0] += from.data[row * from.stride];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

/// Chunks from `index` on that are a group; none if decays are not mild, or for what scans do not know.
template <class S>
std::int64_t group_chunks(const Run<S>& run, std::int64_t index, std::int64_t most_rows) {
  constexpr float kLeast = -27.0f;  // ln kMild is -27.6
  const LinearShape& shape = run.problem.shape;
  const Sizes& sizes = run.sizes;
  if (run.delta_rule() || sizes.qk != sizes.padded_qk || sizes.v != sizes.padded_v) return 0;
  std::int64_t chunks = smaller(most_rows / linear::kChunk, run.chunks() - index);
  const auto from = head_rows(run.problem.log_decay, run.first_row(index), run.item.head);
  // Of up to 32 channels at a time.
  for (std::int64_t d = 0; d < shape.decay_width; d += 32) {
    const std::int64_t width = smaller(32, shape.decay_width - d);
    Vec sums[2] = {};
    std::int64_t row = 0;
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
      const std::int64_t end = row + run.rows(index + chunk);
      if (width == 1) {
        sums[0] += sum_of_rows(from, row, end);
        row = end;
      }
      for (; row < end; ++row) {
        const float* at = from.data + row * from.stride + d;
        sums[0] += load(at);
        sums[1] += load(at + kLanes);
      }
      // NaN is not mild.
      const Ints mild = (sums[0] >= kLeast) & (sums[1] >= kLeast);
      if (any(~mild)) chunks = chunk;
    }
  }
  return chunks;
}

/// Rows of a run that are a group.
struct GroupPlace {
  std::int64_t row0, rows;

  std::int64_t chunks() const { return (rows + kScanRows - 1) / kScanRows; }
  std::int64_t tail() const { return rows % kScanRows; }  ///< Rows of a last chunk that is not whole.
};

/// x moved by N lanes, to later ones or `down` to earlier ones; `edge` comes in.
template <int N, bool kDown>
inline Vec shifted(Vec x, Vec edge) {
  const auto shift = [&]<int... I>(std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(x, edge, (kDown ? I + N : I >= N ? I - N : kLanes + I)...);
  };
  return shift(std::make_integer_sequence<int, kLanes>{});
}
/// Of each lane and all before it; `down`: and all behind it.
template <bool kDown>
inline Vec running_product(Vec x) {
  static_assert(kLanes == 16);
  const Vec one = splat(1.0f);
  x *= shifted<1, kDown>(x, one);
  x *= shifted<2, kDown>(x, one);
  x *= shifted<4, kDown>(x, one);
  return x * shifted<8, kDown>(x, one);
}

/// Factors of a group's rows; those that do not exist do not decay.
template <bool kFalling, class S>
void fill_factors(const Run<S>& run, GroupPlace at, const GroupDecay& decay) {
  const std::int64_t padded = round_up(at.rows, 32), rows = at.rows;
  const auto from = head_rows(run.problem.log_decay, at.row0, run.item.head);
  const std::int64_t width = decay.width;
  if (width == 1) {
    float* f = decay.factor;
    for (std::int64_t i = 0; i < padded; ++i) f[i] = run.problem.shape.decay_width > 0 && i < rows ? from.data[i * from.stride] : 0;
    Vec product = splat(1.0f);
    for (std::int64_t n = 0; n < padded; n += kLanes) {
      float* x = f + (kFalling ? padded - kLanes - n : n);
      const Vec before = product, all = before * running_product<kFalling>(step_of(load(x)));
      store(x, kFalling ? shifted<1, kFalling>(all, before) : all);
      product = splat(all[kFalling ? 0 : kLanes - 1]);
    }
    *decay.total = product[0];
    return;
  }
  // Not as products: an exponential of a sum is as short as that of its last term is exact.
  for (std::int64_t d = 0; d < width; d += 32) {
    Vec sum[2] = {};
    for (std::int64_t n = 0; n < padded; ++n) {
      const std::int64_t i = kFalling ? padded - 1 - n : n;
      for (std::int64_t half = 0; half < 2; ++half) {
        const std::int64_t channel = d + half * kLanes;
        const Vec step = i < rows ? load(from.data + i * from.stride + channel) * kLog2E : Vec{};
        const Vec behind = sum[half] + step;
        store(decay.factor + i * width + channel, weight(kFalling ? sum[half] : behind));
        sum[half] = behind;
      }
    }
    for (std::int64_t half = 0; half < 2; ++half) store(decay.total + d + half * kLanes, exp2(sum[half]));
  }
}

template <class S>
GroupPlace group_place(const Run<S>& run, std::int64_t first_chunk, std::int64_t end) {
  const std::int64_t row0 = run.first_row(first_chunk);
  return {row0, smaller(run.first_row(end), run.item.run.row0 + run.item.run.rows) - row0};
}

/// Rows of a tensor of the group. A last chunk that is not whole lies in `space`.
template <class T>
ChunkRows<T> group_rows(const Strided<T>& tensor, std::int64_t head, std::int64_t width, GroupPlace at, float* space) {
  ChunkRows<T> group{head_rows(tensor, at.row0, head)};
  if (at.tail() == 0) return group;
  group.tail = reinterpret_cast<T*>(space);
  group.tail_chunk = at.chunks() - 1;
  group.tail_stride = width;
  return group;
}
/// The same with its rows, and zeros behind them.
template <class S>
ChunkRows<const S> group_operand(const Strided<const S>& tensor, std::int64_t head, std::int64_t width, GroupPlace at, float* space) {
  const ChunkRows<const S> group = group_rows(tensor, head, width, at, space);
  if (group.tail == nullptr) return group;
  S* to = reinterpret_cast<S*>(space);
  for (std::int64_t i = 0; i < round_up(at.tail(), 32); ++i) {
    for (std::int64_t d = 0; d < width; d += 32) {
      store_bits(to + i * width + d, i < at.tail() ? load_bits(group.home(i) + d) : Vec{});
    }
  }
  return group;
}
/// Brings the rows of a last chunk that is not whole where they belong.
template <class S>
void store_tail(const ChunkRows<S>& group, std::int64_t width, GroupPlace at) {
  for (std::int64_t i = 0; group.tail != nullptr && i < at.tail(); ++i) {
    __builtin_memcpy(static_cast<void*>(group.home(i)), group.tail + i * width, static_cast<std::size_t>(width) * sizeof(S));
  }
}

/// And to where a scan finds them.
template <class S>
void load_tail(const ChunkRows<S>& group, std::int64_t width, GroupPlace at) {
  for (std::int64_t i = 0; group.tail != nullptr && i < at.tail(); ++i) {
    __builtin_memcpy(static_cast<void*>(group.tail + i * width), group.home(i), static_cast<std::size_t>(width) * sizeof(S));
  }
}

template <bool kFalling, class S>
void scan(const ScanTensors<S>& tensors, bool decays_keys, const GroupDecay& decay, std::int64_t rows, const ScanState& state,
          const ScanSpace& space, Pulse& pulse) {
  const auto run = [&]<DecayOf kDecay, bool kProducts>() {
    Scan<S, kDecay, kFalling, kProducts>(tensors, decay, rows, state, space, pulse).run();
  };
  if (decay.width > 1) {  // Values that carry decays are those of gradients whose products are wanted.
    return decays_keys ? run.template operator()<DecayOf::keys, false>() : run.template operator()<DecayOf::values, true>();
  }
  if (tensors.products.rows.data != nullptr) return run.template operator()<DecayOf::rows, true>();
  run.template operator()<DecayOf::rows, false>();
}

/// For either pass.
inline GroupDecay carve_group_decay(const LinearShape& shape, Carver& carver) {
  const std::int64_t width = larger(shape.decay_width, 1);
  return {carver.take(forward_group_rows(width) * width), carver.take(width), width};
}

template <class S>
class Groups<TileProducts, S> {
 public:
  Groups(const LinearShape& shape, const Sizes& sizes, Carver& carver)
      : decay_(carve_group_decay(shape, carver)), scan_(carve_scan(sizes.padded_qk, sizes.padded_v, decay_.width > 1, carver)) {
    for (float*& tail : tails_) tail = carver.take(kScanRows * larger(sizes.padded_qk, sizes.padded_v) / 2);
  }

  std::int64_t apply(TileProducts& products, const Run<S>& run, std::int64_t index, const Strided<S>& out, Matrix state,
                     const TileProducts::Right& packed) const {
    const std::int64_t chunks = group_chunks(run, index, forward_group_rows(run.problem.shape.decay_width));
    if (chunks == 0) return 0;
    const auto& p = run.problem;
    const std::int64_t qk = run.sizes.qk, v = run.sizes.v, head = run.item.head;
    const GroupPlace at = group_place(run, index, index + chunks);
    fill_factors<false>(run, at, decay_);
    const ScanTensors<S> tensors{group_operand(p.q, head, qk, at, tails_[0]),
                                 group_operand(p.k, head, qk, at, tails_[1]),
                                 group_operand(p.v, head, v, at, tails_[2]),
                                 group_rows(out, head, v, at, tails_[3]),
                                 qk,
                                 v,
                                 1.0f,
                                 static_cast<float>(p.scale)};
    scan<false>(tensors, true, decay_, at.rows, {state, packed.tiles}, scan_, products.pulse());
    store_tail(tensors.out, v, at);
    return chunks;
  }

 private:
  GroupDecay decay_;
  ScanSpace scan_;
  float* tails_[4];
};

}  // namespace
}  // namespace periplus::kernels::cpu
