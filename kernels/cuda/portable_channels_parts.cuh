#pragma once
// What a walk of portable_channels.cuh is made of, beside the parts of portable_linear_parts.cuh.

#include "kernels/cuda/portable_linear_parts.cuh"

namespace periplus::kernels::cuda::portable {

constexpr int kSubRows = 16;  ///< Of a sub-block: rows of a matrix instruction.

/// Sums of log_decay in a chunk, f32 in shared memory: g of tile row r and channel c, base 2.
template <int width>
struct ChannelDecay {
  /// Fragments of B read two rows a lane: eight columns and four pairs of rows lie in different banks.
  static constexpr int kStride = width + 4;
  static constexpr int kBytes = (kChunkRows * kStride + width) * 4;
  float* sums;

  __device__ float at(int row, int channel) const { return sums[row * kStride + channel]; }
  __device__ float2 pair(int row, int channel) const { return *reinterpret_cast<const float2*>(sums + row * kStride + channel); }
  /// g_C
  __device__ float* last() const { return sums + kChunkRows * kStride; }
};

/// Starts to copy log_decay of the chunk's tile rows; rows and channels without become zero.
template <int width>
__device__ __forceinline__ void copy_channel_decay(const ChannelDecay<width>& to, const Strided<const float>& log_decay, const Place& place,
                                                   int step, int channels) {
  constexpr int kPieces = width / 4;
#pragma unroll 1
  for (int item = static_cast<int>(afresh(threadIdx.x)); item < kChunkRows * kPieces; item += kLinearThreads) {
    const int row = item / kPieces, channel = item % kPieces * 4;
    const std::int64_t token = place.row_of(step, row) + (place.reverse ? 1 : 0);
    const bool behind = place.reverse && place.segment.ends != 0 && token == place.segment.row0 + place.segment.rows;
    const bool decays = row < place.rows(step) && !behind && channel < channels;
    copy_16_or_zero(shared_address(to.sums + row * ChannelDecay<width>::kStride + channel),
                    decays ? at(log_decay, token, place.head) + channel : log_decay.data, decays);
  }
}

/// Bounded as fill_decay does; a thread has a channel.
template <int width>
__device__ __forceinline__ void sum_channel_decay(const ChannelDecay<width>& decay) {
  constexpr float kLeast = -128.0f;
  const int channel = static_cast<int>(threadIdx.x);
  if (channel >= width) return;
  float sum = 0.0f;
#pragma unroll 8
  for (int row = 0; row < kChunkRows; ++row) {
    float& number = decay.sums[row * ChannelDecay<width>::kStride + channel];
    sum += max(kLeast, kLog2E * number);
    number = sum;
  }
  decay.last()[channel] = sum;
}

/// Numbers of the tile, in place, times weight(row, channel): visit by pairs of channels.
template <class T, int width, class Weight>
__device__ __forceinline__ void weigh_tile(const SharedTile<T, kChunkRows, width>& tile, const Weight& weight) {
#pragma unroll 1
  for (int item = static_cast<int>(afresh(threadIdx.x)); item < kChunkRows * width / 8; item += kLinearThreads) {
    const int row = item / (width / 8), channel = item % (width / 8) * 8;
    const uint4 from = load_shared_16(tile.address(row, channel / 8));
    const std::uint32_t words[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = Pairs<T>::unpack(words[i]), by = weight(row, channel + 2 * i);
      tile.put(row, channel + 2 * i, Numbers<T>::pack(pair.x * by.x, pair.y * by.y));
    }
  }
}

/// exp(a - b) of two channels, a <= b. Base 2, as all of g.
__device__ __forceinline__ float2 exp2_of_difference(float2 a, float2 b) { return {exp2_fast(a.x - b.x), exp2_fast(a.y - b.y)}; }
/// Two numbers of storage type by two factors.
template <class T>
__device__ __forceinline__ std::uint32_t weighed(std::uint32_t both, float2 by) {
  const float2 pair = Pairs<T>::unpack(both);
  return Numbers<T>::pack(pair.x * by.x, pair.y * by.y);
}

/// A score's decay differs from channel to channel of keys. Below the diagonal sub-blocks it factors at the last row before the
/// queries' sub-block: both exponents are <= 0, and scores are products of decayed queries and keys. Row `row` of sub-blocks,
/// `count` of them from `first` on.
template <class T, int width>
__device__ __forceinline__ void make_scores_below(const SharedTile<T, kChunkRows, width>& q, const SharedTile<T, kChunkRows, width>& k,
                                                  const SharedTile<T, kChunkRows, kChunkRows>& scores, const ChannelDecay<width>& decay,
                                                  float scale, int row, int first, int count) {
  const int lane = lane_afresh(), outer = lane / 4, reference = row * kSubRows - 1;
  float sum[2][2][4] = {};
#pragma unroll 1
  for (int inner = 0; inner < width / 16; ++inner) {
    FragmentA queries = q.a_by_rows(row * kSubRows, inner, lane);
    const int channel = inner * 16 + lane % 4 * 2;
    const float2 border[2] = {decay.pair(reference, channel), decay.pair(reference, channel + 8)};
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      const float2 g = decay.pair(row * kSubRows + outer + part % 2 * 8, channel + part / 2 * 8);
      queries.part[part] = weighed<T>(queries.part[part], exp2_of_difference(g, border[part / 2]));
    }
#pragma unroll
    for (int block = 0; block < 2; ++block) {
      if (block >= count) continue;
      std::uint32_t keys[4];
      const int column = (first + block) * kSubRows;
      k.b_by_rows(keys, column, inner, lane);
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        const float2 g = decay.pair(column + outer + part / 2 * 8, channel + part % 2 * 8);
        keys[part] = weighed<T>(keys[part], exp2_of_difference(border[part % 2], g));
      }
      Numbers<T>::multiply(sum[block][0], queries, keys[0], keys[1]);
      Numbers<T>::multiply(sum[block][1], queries, keys[2], keys[3]);
    }
  }
#pragma unroll
  for (int block = 0; block < 2; ++block) {
    if (block >= count) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int column = (first + block) * kSubRows + half * 8 + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        scores.put(row * kSubRows + outer + i * 8, column,
                   Numbers<T>::pack(scale * sum[block][half][2 * i], scale * sum[block][half][2 * i + 1]));
      }
    }
  }
}

/// The diagonal sub-block of a warp. A lane has a key and every other 8 channels; from row to row its key decays by a factor <= 1. The
/// factors of 16 rows and 16 channels lie in `stage`.
template <class T, int width>
__device__ __forceinline__ void make_scores_on(const SharedTile<T, kChunkRows, width>& q, const SharedTile<T, kChunkRows, width>& k,
                                               const SharedTile<T, kChunkRows, kChunkRows>& scores, const ChannelDecay<width>& decay,
                                               float scale, int block, float* stage) {
  const int lane = lane_afresh(), key = lane % 16, half = lane / 16, first = block * kSubRows;
  float sum[kSubRows] = {};
#pragma unroll 1
  for (int channel = 0; channel < width; channel += 16) {
    __syncwarp();  // the last factors have been read
#pragma unroll
    for (int i = 0; i < kSubRows / 2; ++i) {
      const int row = half + 2 * i, at = first + row;
      stage[row * 16 + key] = row == 0 ? 1.0f : exp2_fast(decay.at(at, channel + key) - decay.at(at - 1, channel + key));
    }
    __syncwarp();
    const auto load = [&](const SharedTile<T, kChunkRows, width>& tile, int row, float(&to)[8]) {
      const uint4 from = load_shared_16(tile.address(row, channel / 8 + half));
      const std::uint32_t words[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 pair = Pairs<T>::unpack(words[i]);
        to[2 * i] = pair.x, to[2 * i + 1] = pair.y;
      }
    };
    float decayed[8];
    load(k, first + key, decayed);
#pragma unroll
    for (int row = 0; row < kSubRows; ++row) {
      float query[8];
      load(q, first + row, query);
      const float4* const factors = reinterpret_cast<const float4*>(stage + row * 16 + half * 8);
      const float4 low = factors[0], high = factors[1];
      const float by[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (row > key) decayed[i] *= by[i];
        sum[row] += query[i] * decayed[i];
      }
    }
  }
#pragma unroll
  for (int row = 0; row < kSubRows; ++row) {
    const float both = scale * (sum[row] + __shfl_xor_sync(0xffffffffu, sum[row], 16));
    const float own = key <= row ? both : 0.0f, next = __shfl_xor_sync(0xffffffffu, own, 1);
    if (half == 0 && key % 2 == 0) scores.put(first + row, first + key, Numbers<T>::pack(own, next));
  }
}

/// What the chunk's own values give in the diagonal sub-block, where the decay is that of the values' channels: in `stage`,
/// [16 rows][the warp's columns]. A lane has a column; what it holds of each value decays by a factor <= 1 from row to row.
template <class T, int width>
struct ValueStage {
  static constexpr int kSlice = width / kLinearWarps;
  static constexpr int kStride = kSlice + 4;
  static constexpr int kBytes = kSubRows * kStride * 4;
  float* numbers;

  __device__ __forceinline__ void fill(const SharedTile<T, kChunkRows, kChunkRows>& scores, const SharedTile<T, kChunkRows, width>& v,
                                       const ChannelDecay<width>& decay, int block) const {
    const int of_warp = lane_afresh() % kSlice, column = warp_of_group() * kSlice + of_warp, first = block * kSubRows;
    float decayed[kSubRows], before = decay.at(first, column);
    __syncwarp();  // the last numbers have been read
#pragma unroll
    for (int row = 0; row < kSubRows; ++row) {
      const float g = decay.at(first + row, column), factor = exp2_fast(g - before);
      before = g;
      const uint4 low = load_shared_16(scores.address(first + row, block * 2)),
                  high = load_shared_16(scores.address(first + row, block * 2 + 1));
      const std::uint32_t words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
      const float2 pair =
          Pairs<T>::unpack(load_shared_4(v.address(first + row, column / 8) + static_cast<std::uint32_t>(column % 8 / 2 * 4)));
      float sum = 0.0f;
#pragma unroll
      for (int key = 0; key <= row; ++key) {
        decayed[key] = key < row ? factor * decayed[key] : column % 2 == 0 ? pair.x : pair.y;
        const float2 score = Pairs<T>::unpack(words[key / 2]);
        sum += (key % 2 == 0 ? score.x : score.y) * decayed[key];
      }
      numbers[row * kStride + of_warp] = sum;
    }
    __syncwarp();
  }
  /// sums += those of the diagonal sub-block
  __device__ __forceinline__ void add_to(float (&sums)[1][kSlice / 8][4]) const {
    const int lane = lane_afresh();
#pragma unroll
    for (int narrow = 0; narrow < kSlice / 8; ++narrow) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 pair = *reinterpret_cast<const float2*>(numbers + (lane / 4 + half * 8) * kStride + narrow * 8 + lane % 4 * 2);
        sums[0][narrow][2 * half] += pair.x;
        sums[0][narrow][2 * half + 1] += pair.y;
      }
    }
  }
};

/// Results of a row of sub-blocks where the decay is that of the values' channels, but for the diagonal one. As in make_scores_below, it
/// factors at the row before the sub-block:
///   sums = exp(g - g_before) (exp(g_before) q S + P exp(g_before - g) v)
template <class T, int width>
__device__ __forceinline__ void add_values_below(const SharedTile<T, kChunkRows, width>& q,
                                                 const SharedTile<T, kChunkRows, kChunkRows>& scores,
                                                 const SharedTile<T, kChunkRows, width>& v, const ChannelDecay<width>& decay,
                                                 const typename LinearTiles<T, width>::State& state, int row, LinearSums<width, 1>& sums) {
  constexpr int kSlice = width / kLinearWarps;
  multiply_state<T, width>(q, state, row, sums);
  const int lane = lane_afresh(), first = warp_of_group() * kSlice, reference = row * kSubRows - 1;
  const auto weigh = [&](const auto& factor_of) {
#pragma unroll
    for (int narrow = 0; narrow < kSlice / 8; ++narrow) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 by = factor_of(row * kSubRows + lane / 4 + half * 8, first + narrow * 8 + lane % 4 * 2);
        sums[0][narrow][2 * half] *= by.x;
        sums[0][narrow][2 * half + 1] *= by.y;
      }
    }
  };
  if (row > 0) weigh([&](int, int column) { return exp2_of_difference(decay.pair(reference, column), {0.0f, 0.0f}); });
#pragma unroll 1
  for (int inner = 0; inner < row; ++inner) {
    const FragmentA a = scores.a_by_rows(row * kSubRows, inner, lane);
#pragma unroll
    for (int pair = 0; pair < kSlice / 16; ++pair) {
      std::uint32_t values[4];
      v.b_by_columns(values, first + pair * 16, inner, lane);
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        const int key = inner * 16 + part % 2 * 8 + lane % 4 * 2, column = first + pair * 16 + part / 2 * 8 + lane / 4;
        const float border = decay.at(reference, column);
        values[part] = weighed<T>(values[part], exp2_of_difference({border, border}, {decay.at(key, column), decay.at(key + 1, column)}));
      }
      Numbers<T>::multiply(sums[0][2 * pair], a, values[0], values[1]);
      Numbers<T>::multiply(sums[0][2 * pair + 1], a, values[2], values[3]);
    }
  }
  weigh([&](int of_chunk, int column) {
    return exp2_of_difference(decay.pair(of_chunk, column), row > 0 ? decay.pair(reference, column) : float2{0.0f, 0.0f});
  });
}

/// S := exp(g_C) S, the decay being that of rows (of keys' channels) or of columns.
template <class T, int width, bool of_rows>
__device__ __forceinline__ void decay_state(const ChannelDecay<width>& decay, typename LinearTiles<T, width>::State& state) {
  using Tiles = LinearTiles<T, width>;
  const int lane = lane_afresh(), first = warp_of_group() * Tiles::kSlice;
#pragma unroll
  for (int wide = 0; wide < Tiles::kWide; ++wide) {
#pragma unroll
    for (int tall = 0; tall < Tiles::kTall; ++tall) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = wide * 8 + lane % 4 * 2 + i % 2, column = first + tall * 16 + lane / 4 + i / 2 * 8;
        state[tall][wide][i] *= exp2_fast(decay.last()[of_rows ? row : column]);
      }
    }
  }
}

/// Sums over the state's rows by column, for the lane's columns [tall][half]: all lanes of a quad get them.
template <class T, int width, class Product>
__device__ __forceinline__ void note_columns(typename LinearTiles<T, width>::State& state, const Walk<T>& walk, const Place& place,
                                             int block, const Product& product) {
  using Tiles = LinearTiles<T, width>;
  const int lane = lane_afresh(), first = warp_of_group() * Tiles::kSlice;
  float* const to = walk.decay_gradient.ends + ((place.segment.block0 + block) * std::int64_t{walk.heads} + place.head) * walk.width_v;
#pragma unroll
  for (int tall = 0; tall < Tiles::kTall; ++tall) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = 0.0f;
#pragma unroll
      for (int wide = 0; wide < Tiles::kWide; ++wide)
        sum += product(state[tall][wide][2 * half], state[tall][wide][2 * half + 1], tall, wide, half);
      sum = sum_over_lanes(sum, 4);
      const int column = first + tall * 16 + lane / 4 + half * 8;
      if (lane % 4 == 0 && column < walk.width_v) to[column] = sum;
    }
  }
}

}  // namespace periplus::kernels::cuda::portable
