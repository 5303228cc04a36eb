#pragma once
// What a walk of portable_linear.cuh is made of.

#include "kernels/cuda/linear_walk.h"
#include "kernels/cuda/operands.cuh"
#include "kernels/cuda/pairs.cuh"
#include "kernels/cuda/shared_tile.cuh"
#include "kernels/cuda/softmax.cuh"

namespace periplus::kernels::cuda::portable {

constexpr int kLinearWarps = 4;
constexpr int kLinearThreads = kLinearWarps * 32;
constexpr int kChunkRows = static_cast<int>(kLinearChunk);

/// Warps of a block come in groups of kLinearWarps, each with a walk of its own.
__device__ __forceinline__ int warp_of_group() { return warp_afresh() % kLinearWarps; }

/// Rows of a chunk, two to a lane: factors of decay, which every warp makes for itself.
struct ChunkDecay {
  float* sums;   ///< g, base 2
  float* grown;  ///< exp(g)
  float* sunk;   ///< exp(g_C - g)
  float total;   ///< g_C
};

template <class T, int width>
struct LinearTiles {
  using Rows = SharedTile<T, kChunkRows, width>;
  using Scores = SharedTile<T, kChunkRows, kChunkRows>;
  static constexpr int kSlice = width / kLinearWarps;  ///< Columns of v that a warp has.
  static constexpr int kTall = kSlice / 16, kWide = width / 8;
  static constexpr int kSegmentBytes = 64;
  static_assert(sizeof(Segment) <= kSegmentBytes);

  /// The transposed state of the warp's columns: [16 columns][8 rows] as of an mma's result.
  using State = float[kTall][kWide][4];
};

/// A block's segment and head.
struct Place {
  const Segment& segment;  ///< In shared memory: registers are short.
  std::int32_t head;
  bool reverse;

  __device__ int chunks() const { return (segment.rows + kChunkRows - 1) / kChunkRows; }
  /// In the order of tokens.
  __device__ int chunk_of(int step) const { return reverse ? chunks() - 1 - step : step; }
  __device__ std::int64_t first_row(int step) const { return segment.row0 + std::int64_t{chunk_of(step)} * kChunkRows; }
  __device__ int rows(int step) const { return min(kChunkRows, segment.rows - chunk_of(step) * kChunkRows); }
  __device__ std::int64_t row_of(int step, int tile_row) const {
    return first_row(step) + (reverse ? rows(step) - 1 - tile_row : tile_row);
  }
};

template <int threads, class Tile, class T>
__device__ __forceinline__ void copy_chunk(const Tile& tile, const Strided<const T>& from, const Place& place, int step, int width) {
  const auto stride = static_cast<int>(place.reverse ? -from.row : from.row);
  tile.template copy_in<threads>(at(from, place.row_of(step, 0), place.head), stride, place.rows(step), width);
}

/// Starts to copy log_decay of the chunk's tile rows; rows without become zero.
__device__ __forceinline__ void copy_log_decay(float* to, const Strided<const float>& log_decay, const Place& place, int step) {
  const auto row = static_cast<int>(afresh(threadIdx.x));
  if (row >= kChunkRows) return;
  if (log_decay.data == nullptr) {
    to[row] = 0.0f;
    return;
  }
  const std::int64_t token = place.row_of(step, row) + (place.reverse ? 1 : 0);
  const bool behind = place.reverse && place.segment.ends != 0 && token == place.segment.row0 + place.segment.rows;
  const bool decays = row < place.rows(step) && !behind;
  copy_4_or_zero(shared_address(to + row), decays ? at(log_decay, token, place.head) : log_decay.data, decays);
}

/// Bounded, so that a token that forgets everything leaves the others their digits; 2^-128 is nothing.
__device__ __forceinline__ void fill_decay(const float* log_decay, ChunkDecay& decay) {
  constexpr float kLeast = -128.0f;
  const int lane = lane_afresh();
  const float2 own = {max(kLeast, kLog2E * log_decay[2 * lane]), max(kLeast, kLog2E * log_decay[2 * lane + 1])};
  float sum = own.x + own.y;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const float lower = __shfl_up_sync(0xffffffffu, sum, distance);
    if (lane >= distance) sum += lower;
  }
  const float lower = __shfl_up_sync(0xffffffffu, sum, 1);
  const float first = (lane == 0 ? 0.0f : lower) + own.x, second = first + own.y;
  decay.total = __shfl_sync(0xffffffffu, second, 31);
  const float values[2] = {first, second};
  __syncwarp();  // the last chunk's have been read
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    decay.sums[2 * lane + i] = values[i];
    decay.grown[2 * lane + i] = exp2_fast(values[i]);
    decay.sunk[2 * lane + i] = exp2_fast(decay.total - values[i]);
  }
  __syncwarp();
}

/// Blocks of 16 x 16 scores on and below the diagonal that a warp makes: ten, dealt out so that no warp has more than three.
struct ScoreBlocks {
  int warp;
  __device__ int count() const { return warp < 2 ? 3 : 2; }
  __device__ int row(int block) const { return warp == 3 && block == 1 ? 3 : 3 - warp; }
  __device__ int column(int block) const { return warp == 3 ? 3 * block : block; }
};

/// visit(row, column, q k^T there and in the next column) for pairs in blocks on and below the diagonal.
template <class T, int width, class Visit>
__device__ __forceinline__ void for_each_score(const SharedTile<T, kChunkRows, width>& q, const SharedTile<T, kChunkRows, width>& k,
                                               const Visit& visit) {
  const int warp = warp_of_group(), lane = lane_afresh();
  constexpr int kMostBlocks = 3;
  const ScoreBlocks blocks{warp};
  float sum[kMostBlocks][2][4] = {};
#pragma unroll 2
  for (int inner = 0; inner < width / 16; ++inner) {
    const FragmentA first = q.a_by_rows(blocks.row(0) * 16, inner, lane);
    FragmentA second = first;
    if (warp == 3) second = q.a_by_rows(blocks.row(1) * 16, inner, lane);
#pragma unroll
    for (int block = 0; block < kMostBlocks; ++block) {
      if (block >= blocks.count()) continue;
      std::uint32_t keys[4];
      k.b_by_rows(keys, blocks.column(block) * 16, inner, lane);
      Numbers<T>::multiply(sum[block][0], block == 1 ? second : first, keys[0], keys[1]);
      Numbers<T>::multiply(sum[block][1], block == 1 ? second : first, keys[2], keys[3]);
    }
  }
#pragma unroll
  for (int block = 0; block < kMostBlocks; ++block) {
    if (block >= blocks.count()) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int column = blocks.column(block) * 16 + half * 8 + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = blocks.row(block) * 16 + lane / 4 + i * 8;
        visit(row, column, sum[block][half][2 * i], sum[block][half][2 * i + 1]);
      }
    }
  }
}

/// scores = weight(row, column) q k^T on and below the diagonal.
template <class T, int width, class Weight>
__device__ __forceinline__ void make_scores(const SharedTile<T, kChunkRows, width>& q, const SharedTile<T, kChunkRows, width>& k,
                                            const SharedTile<T, kChunkRows, kChunkRows>& scores, const Weight& weight) {
  for_each_score<T, width>(q, k, [&](int row, int column, float first, float second) {
    const float left = column <= row ? weight(row, column) * first : 0.0f;
    const float right = column + 1 <= row ? weight(row, column + 1) * second : 0.0f;
    scores.put(row, column, Numbers<T>::pack(left, right));
  });
}

/// The warp's columns of the results of some rows, by 16 rows and 8 columns. Not of all: the state takes half of the registers.
constexpr int kSumRows = 2;
template <int width, int rows = kSumRows>
using LinearSums = float[rows][width / kLinearWarps / 8][4];

/// sums += q S, for row blocks from `first` on.
template <class T, int width, int rows>
__device__ __forceinline__ void multiply_state(const SharedTile<T, kChunkRows, width>& q,
                                               const typename LinearTiles<T, width>::State& state, int first,
                                               float (&sums)[rows][width / kLinearWarps / 8][4]) {
  const int lane = lane_afresh();
  constexpr int kNarrow = width / kLinearWarps / 8;
#pragma unroll
  for (int inner = 0; inner < width / 16; ++inner) {
    std::uint32_t b[kNarrow][2];
#pragma unroll
    for (int column = 0; column < kNarrow; ++column) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* const part = state[column / 2][2 * inner + half] + column % 2 * 2;
        b[column][half] = Pairs<T>::pack_afresh(part[0], part[1]);
      }
    }
#pragma unroll
    for (int row = 0; row < rows; ++row) {
      const FragmentA a = q.a_by_rows((first + row) * 16, inner, lane);
#pragma unroll
      for (int column = 0; column < kNarrow; ++column) Numbers<T>::multiply(sums[row][column], a, b[column][0], b[column][1]);
    }
  }
}

/// sums = exp(g) q S
template <class T, int width>
__device__ __forceinline__ void read_state(const SharedTile<T, kChunkRows, width>& q, const typename LinearTiles<T, width>::State& state,
                                           const ChunkDecay& decay, int first, LinearSums<width>& sums) {
  constexpr int kNarrow = width / kLinearWarps / 8;
  multiply_state<T, width>(q, state, first, sums);
  const int lane = lane_afresh();
#pragma unroll
  for (int row = 0; row < kSumRows; ++row) {
    const int of_chunk = (first + row) * 16 + lane / 4;
    const float upper = decay.grown[of_chunk], lower = decay.grown[of_chunk + 8];
#pragma unroll
    for (int column = 0; column < kNarrow; ++column) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[row][column][i] *= i < 2 ? upper : lower;
    }
  }
}

/// sums += P v
template <class T, int width, int rows>
__device__ __forceinline__ void add_chunk(const SharedTile<T, kChunkRows, kChunkRows>& scores, const SharedTile<T, kChunkRows, width>& v,
                                          int first, float (&sums)[rows][width / kLinearWarps / 8][4]) {
  const int warp = warp_of_group(), lane = lane_afresh();
  constexpr int kSlice = width / kLinearWarps;
#pragma unroll
  for (int inner = 0; inner < kChunkRows / 16; ++inner) {
    if (inner >= first + rows) break;
    std::uint32_t values[kSlice / 16][4];
#pragma unroll
    for (int pair = 0; pair < kSlice / 16; ++pair) v.b_by_columns(values[pair], warp * kSlice + pair * 16, inner, lane);
#pragma unroll
    for (int row = 0; row < rows; ++row) {
      if (first + row < inner) continue;
      const FragmentA a = scores.a_by_rows((first + row) * 16, inner, lane);
#pragma unroll
      for (int pair = 0; pair < kSlice / 16; ++pair) {
        Numbers<T>::multiply(sums[row][2 * pair], a, values[pair][0], values[pair][1]);
        Numbers<T>::multiply(sums[row][2 * pair + 1], a, values[pair][2], values[pair][3]);
      }
    }
  }
}

/// Of four words in each of four neighbouring lanes, lane t gets word t of all: [i] from lane i.
__device__ __forceinline__ void transpose_in_quad(std::uint32_t (&word)[4], int lane) {
#pragma unroll
  for (int distance = 1; distance <= 2; distance *= 2) {
    const bool upper = (lane & distance) != 0;
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      // Words that differ in the bit `distance`: the one whose bit is not the lane's is exchanged.
      const int low = distance == 1 ? 2 * pair : pair, high = low + distance;
      const std::uint32_t other = __shfl_xor_sync(0xffffffffu, upper ? word[low] : word[high], distance);
      (upper ? word[low] : word[high]) = other;
    }
  }
}

/// 16 bytes at a time: the words of a quad of lanes, which are neighbours in a row of 8 columns, go to one of them.
template <class T, int width, int sum_rows>
__device__ __forceinline__ void store_rows(const float (&sums)[sum_rows][width / kLinearWarps / 8][4], float scale, const Strided<T>& out,
                                           int width_out, const Place& place, int step, int first) {
  const int warp = warp_of_group(), lane = lane_afresh();
  constexpr int kNarrow = width / kLinearWarps / 8, kRowsAtOnce = 4 / kNarrow;  // four words: those of 4 x 1 or 2 x 2 (columns, rows)
  const int rows = place.rows(step), column = warp * (width / kLinearWarps) + lane % kNarrow * 8;
  const std::int64_t stride = place.reverse ? -out.row : out.row;
  T* const to = at(out, place.row_of(step, 0), place.head) + column;
#pragma unroll
  for (int row = 0; row < sum_rows; ++row) {
#pragma unroll
    for (int half = 0; half < 2; half += kRowsAtOnce) {
      std::uint32_t word[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* const sum = sums[row][i % kNarrow] + 2 * (half + i / kNarrow);
        word[i] = Numbers<T>::pack(scale * sum[0], scale * sum[1]);
      }
      transpose_in_quad(word, lane);
      const int of_chunk = (first + row) * 16 + (half + lane % 4 / kNarrow) * 8 + lane / 4;
      if (of_chunk < rows && column < width_out) *reinterpret_cast<uint4*>(to + of_chunk * stride) = {word[0], word[1], word[2], word[3]};
    }
  }
}
template <class T, int width, int sum_rows>
__device__ __forceinline__ void store_chunk(const float (&sums)[sum_rows][width / kLinearWarps / 8][4], const Walk<T>& walk,
                                            const Place& place, int step, int first) {
  store_rows<T, width>(sums, walk.scale_out, walk.out, walk.width_v, place, step, first);
}

/// S := S + k^T (weight(row of the chunk, column of v) v)
template <class T, int width, class Weight>
__device__ __forceinline__ void add_to_state(const SharedTile<T, kChunkRows, width>& k, const SharedTile<T, kChunkRows, width>& v,
                                             const Weight& weight, typename LinearTiles<T, width>::State& state) {
  const int warp = warp_of_group(), lane = lane_afresh();
  using Tiles = LinearTiles<T, width>;
#pragma unroll
  for (int inner = 0; inner < kChunkRows / 16; ++inner) {
    FragmentA values[Tiles::kTall];
#pragma unroll
    for (int tall = 0; tall < Tiles::kTall; ++tall) {
      const int first = warp * Tiles::kSlice + tall * 16;
      values[tall] = v.a_by_columns(first, inner, lane);
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        const int row = inner * 16 + part / 2 * 8 + lane % 4 * 2, column = first + part % 2 * 8 + lane / 4;
        const float2 pair = Pairs<T>::unpack(values[tall].part[part]);
        values[tall].part[part] = Numbers<T>::pack(weight(row, column) * pair.x, weight(row + 1, column) * pair.y);
      }
    }
#pragma unroll
    for (int wide = 0; wide < Tiles::kWide; wide += 2) {
      std::uint32_t keys[4];
      k.b_by_columns(keys, wide * 8, inner, lane);
#pragma unroll
      for (int tall = 0; tall < Tiles::kTall; ++tall) {
        Numbers<T>::multiply(state[tall][wide], values[tall], keys[0], keys[1]);
        Numbers<T>::multiply(state[tall][wide + 1], values[tall], keys[2], keys[3]);
      }
    }
  }
}

template <class T, int width>
__device__ __forceinline__ void scale_state(float factor, typename LinearTiles<T, width>::State& state) {
  using Tiles = LinearTiles<T, width>;
#pragma unroll
  for (int tall = 0; tall < Tiles::kTall; ++tall) {
#pragma unroll
    for (int wide = 0; wide < Tiles::kWide; ++wide) {
#pragma unroll
      for (int i = 0; i < 4; ++i) state[tall][wide][i] *= factor;
    }
  }
}

/// S := exp(g_C) S + (exp(g_C - g) k)^T v
template <class T, int width>
__device__ __forceinline__ void advance_state(const SharedTile<T, kChunkRows, width>& k, const SharedTile<T, kChunkRows, width>& v,
                                              const ChunkDecay& decay, float scale, typename LinearTiles<T, width>::State& state) {
  scale_state<T, width>(exp2_fast(decay.total), state);
  add_to_state<T, width>(
      k, v, [&](int row, int) { return scale * decay.sunk[row]; }, state);
}

/// visit(value of two neighbouring rows of the state by reference, row, column) for what this thread has of it. Widths are
/// multiples of 8.
template <class T, int width, class Visit>
__device__ __forceinline__ void for_each_pair_of_state(typename LinearTiles<T, width>::State& state, std::int32_t width_k,
                                                       std::int32_t width_v, const Visit& visit) {
  const int warp = warp_of_group(), lane = lane_afresh();
  using Tiles = LinearTiles<T, width>;
#pragma unroll
  for (int tall = 0; tall < Tiles::kTall; ++tall) {
#pragma unroll
    for (int wide = 0; wide < Tiles::kWide; ++wide) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = wide * 8 + lane % 4 * 2, column = warp * Tiles::kSlice + tall * 16 + lane / 4 + half * 8;
        if (row < width_k && column < width_v) visit(state[tall][wide][2 * half], state[tall][wide][2 * half + 1], row, column);
      }
    }
  }
}

/// visit(number of the state, row, column) for what this thread has of it.
template <class T, int width, class Visit>
__device__ __forceinline__ void for_each_of_state(typename LinearTiles<T, width>::State& state, const Walk<T>& walk, const Visit& visit) {
  for_each_pair_of_state<T, width>(state, walk.width_k, walk.width_v, [&](float& first, float& second, int row, int column) {
    visit(first, row, column);
    visit(second, row + 1, column);
  });
}

template <class T>
__device__ __forceinline__ float* slot_of(const Walk<T>& walk, std::int64_t slot, std::int32_t head) {
  return walk.slots + (slot * walk.heads + head) * (walk.width_k * walk.width_v);
}

template <class T, int width>
__device__ __forceinline__ void load_state(const Walk<T>& walk, const Place& place, typename LinearTiles<T, width>::State& state) {
  const std::int32_t before = place.segment.before;
  if (before == Segment::kZero) return;
  const bool incoming = before == Segment::kIncoming;
  const float* const from = incoming ? at(walk.incoming, place.segment.unit, place.head) : slot_of(walk, before, place.head);
  const std::int32_t row_stride = incoming ? walk.state_row : walk.slot_row,
                     column_stride = incoming ? walk.state_column : walk.slot_column;
  const float scale = incoming ? walk.scale_incoming : 1.0f;
  for_each_of_state<T, width>(
      state, walk, [&](float& number, int row, int column) { number = scale * from[row * row_stride + column * column_stride]; });
}

}  // namespace periplus::kernels::cuda::portable
