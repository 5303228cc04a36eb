#pragma once
// Linear attention without decay or with one decay per head, on matrix instructions, in chunks of 64 tokens (algorithms.md 5.1, 5.5):
//
//   out = scale_out (exp(g) q S + P v),  P_ij = scale_values exp(g_i - g_j) q_i k_j for j <= i
//   S  := exp(g_C) S + (exp(g_C - g_j) k_j)^T (scale_values v_j)
//
// A block takes a segment chunk by chunk, the next one's rows being copied meanwhile. A warp has a slice of the columns of v, and of
// the state, transposed and in registers as the result of v^T k: rounded, that is the operand of q S (mma.cuh). Gradients are the same
// walk with other operands in these roles, from the end where they run backwards; then rows lie in the tiles in falling order, and
// what a token is said to decay is the decay of the token behind it.

#include "kernels/cuda/linear_walk.h"
#include "kernels/cuda/operands.cuh"
#include "kernels/cuda/pairs.cuh"
#include "kernels/cuda/shared_tile.cuh"

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
  constexpr float kLog2E = 1.442695040888963f, kLeast = -128.0f;
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

template <class T, int width>
__device__ __forceinline__ void make_scores(const SharedTile<T, kChunkRows, width>& q, const SharedTile<T, kChunkRows, width>& k,
                                            const SharedTile<T, kChunkRows, kChunkRows>& scores, const ChunkDecay& decay, float scale) {
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
        const float g = decay.sums[row];
        const float left = column <= row ? scale * exp2_fast(g - decay.sums[column]) * sum[block][half][2 * i] : 0.0f;
        const float right = column + 1 <= row ? scale * exp2_fast(g - decay.sums[column + 1]) * sum[block][half][2 * i + 1] : 0.0f;
        scores.put(row, column, Numbers<T>::pack(left, right));
      }
    }
  }
}

/// The warp's columns of the results of some rows, by 16 rows and 8 columns. Not of all: the state takes half of the registers.
constexpr int kSumRows = 2;
template <int width>
using LinearSums = float[kSumRows][width / kLinearWarps / 8][4];

/// sums = exp(g) q S, for row blocks from `first` on.
template <class T, int width>
__device__ __forceinline__ void read_state(const SharedTile<T, kChunkRows, width>& q, const typename LinearTiles<T, width>::State& state,
                                           const ChunkDecay& decay, int first, LinearSums<width>& sums) {
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
    for (int row = 0; row < kSumRows; ++row) {
      const FragmentA a = q.a_by_rows((first + row) * 16, inner, lane);
#pragma unroll
      for (int column = 0; column < kNarrow; ++column) Numbers<T>::multiply(sums[row][column], a, b[column][0], b[column][1]);
    }
  }
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
template <class T, int width>
__device__ __forceinline__ void add_chunk(const SharedTile<T, kChunkRows, kChunkRows>& scores, const SharedTile<T, kChunkRows, width>& v,
                                          int first, LinearSums<width>& sums) {
  const int warp = warp_of_group(), lane = lane_afresh();
  constexpr int kSlice = width / kLinearWarps;
#pragma unroll
  for (int inner = 0; inner < kChunkRows / 16; ++inner) {
    if (inner >= first + kSumRows) break;
    std::uint32_t values[kSlice / 16][4];
#pragma unroll
    for (int pair = 0; pair < kSlice / 16; ++pair) v.b_by_columns(values[pair], warp * kSlice + pair * 16, inner, lane);
#pragma unroll
    for (int row = 0; row < kSumRows; ++row) {
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
template <class T, int width>
__device__ __forceinline__ void store_chunk(const LinearSums<width>& sums, const Walk<T>& walk, const Place& place, int step, int first) {
  const int warp = warp_of_group(), lane = lane_afresh();
  constexpr int kNarrow = width / kLinearWarps / 8, kRowsAtOnce = 4 / kNarrow;  // four words: those of 4 x 1 or 2 x 2 (columns, rows)
  const int rows = place.rows(step), column = warp * (width / kLinearWarps) + lane % kNarrow * 8;
  const std::int64_t stride = place.reverse ? -walk.out.row : walk.out.row;
  T* const to = at(walk.out, place.row_of(step, 0), place.head) + column;
#pragma unroll
  for (int row = 0; row < kSumRows; ++row) {
#pragma unroll
    for (int half = 0; half < 2; half += kRowsAtOnce) {
      std::uint32_t word[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* const sum = sums[row][i % kNarrow] + 2 * (half + i / kNarrow);
        word[i] = Numbers<T>::pack(walk.scale_out * sum[0], walk.scale_out * sum[1]);
      }
      transpose_in_quad(word, lane);
      const int of_chunk = (first + row) * 16 + (half + lane % 4 / kNarrow) * 8 + lane / 4;
      if (of_chunk < rows && column < walk.width_v)
        *reinterpret_cast<uint4*>(to + of_chunk * stride) = {word[0], word[1], word[2], word[3]};
    }
  }
}

/// S := exp(g_C) S + (exp(g_C - g) k)^T v
template <class T, int width>
__device__ __forceinline__ void advance_state(const SharedTile<T, kChunkRows, width>& k, const SharedTile<T, kChunkRows, width>& v,
                                              const ChunkDecay& decay, float scale, typename LinearTiles<T, width>::State& state) {
  const int warp = warp_of_group(), lane = lane_afresh();
  using Tiles = LinearTiles<T, width>;
  const float factor = exp2_fast(decay.total);
#pragma unroll
  for (int tall = 0; tall < Tiles::kTall; ++tall) {
#pragma unroll
    for (int wide = 0; wide < Tiles::kWide; ++wide) {
#pragma unroll
      for (int i = 0; i < 4; ++i) state[tall][wide][i] *= factor;
    }
  }
#pragma unroll
  for (int inner = 0; inner < kChunkRows / 16; ++inner) {
    FragmentA values[Tiles::kTall];
#pragma unroll
    for (int tall = 0; tall < Tiles::kTall; ++tall) {
      values[tall] = v.a_by_columns(warp * Tiles::kSlice + tall * 16, inner, lane);
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        const int row = inner * 16 + part / 2 * 8 + lane % 4 * 2;
        const float2 pair = Pairs<T>::unpack(values[tall].part[part]);
        values[tall].part[part] = Numbers<T>::pack(scale * decay.sunk[row] * pair.x, scale * decay.sunk[row + 1] * pair.y);
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

/// visit(number of the state, row, column) for what this thread has of it.
template <class T, int width, class Visit>
__device__ __forceinline__ void for_each_of_state(typename LinearTiles<T, width>::State& state, const Walk<T>& walk, const Visit& visit) {
  const int warp = warp_of_group(), lane = lane_afresh();
  using Tiles = LinearTiles<T, width>;
#pragma unroll
  for (int tall = 0; tall < Tiles::kTall; ++tall) {
#pragma unroll
    for (int wide = 0; wide < Tiles::kWide; ++wide) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = wide * 8 + lane % 4 * 2 + i % 2, column = warp * Tiles::kSlice + tall * 16 + lane / 4 + i / 2 * 8;
        if (row < walk.width_k && column < walk.width_v) visit(state[tall][wide][i], row, column);
      }
    }
  }
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

/// dots of the partner with results, row by row.
template <class T, int width>
__device__ __forceinline__ void note_dots(const LinearSums<width>& sums, const Walk<T>& walk, const Place& place, int step, int first) {
  const DecayGradient<T>& notes = walk.decay_gradient;
  const int warp = warp_of_group(), lane = lane_afresh(), count = place.rows(step) - first * 16 - lane / 4;
  const int column = warp * (width / kLinearWarps) + lane % 4 * 2, direction = place.reverse ? -1 : 1;
  const std::int64_t token = place.row_of(step, first * 16 + lane / 4);
  const T* const partner = at(notes.partner, token, place.head) + column;
  float* const dots = notes.dots + (warp * notes.rows + token) * walk.heads + place.head;
#pragma unroll
  for (int row = 0; row < kSumRows; ++row) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int ahead = row * 16 + half * 8;
      float dot = 0.0f;
#pragma unroll
      for (int narrow = 0; narrow < width / kLinearWarps / 8; ++narrow) {
        if (ahead >= count || column + narrow * 8 >= walk.width_v) continue;
        const int offset = direction * ahead * static_cast<int>(notes.partner.row) + narrow * 8;
        const float2 pair = Pairs<T>::unpack(*reinterpret_cast<const std::uint32_t*>(partner + offset));
        dot += pair.x * sums[row][narrow][2 * half] + pair.y * sums[row][narrow][2 * half + 1];
      }
      dot = walk.scale_out * sum_over_lanes(dot, 4);
      if (ahead < count && lane % 4 == 0) dots[direction * ahead * walk.heads] = dot;
    }
  }
}

/// The numbers of the state, in pairs, to or from a block's place: visit(pair of this thread, where).
template <class T, int width, class Visit>
__device__ __forceinline__ void for_each_pair(typename LinearTiles<T, width>::State& state, const Walk<T>& walk, const Place& place,
                                              int block, const Visit& visit) {
  using Tiles = LinearTiles<T, width>;
  constexpr int kPairs = Tiles::kTall * Tiles::kWide * 2 * kLinearThreads;
  std::uint32_t* to = walk.decay_gradient.states + ((place.segment.block0 + block) * std::int64_t{walk.heads} + place.head) * kPairs +
                      afresh(threadIdx.x) % kLinearThreads;
#pragma unroll
  for (int tall = 0; tall < Tiles::kTall; ++tall) {
#pragma unroll
    for (int wide = 0; wide < Tiles::kWide; ++wide) {
#pragma unroll
      for (int half = 0; half < 2; ++half, to += kLinearThreads) visit(state[tall][wide][2 * half], state[tall][wide][2 * half + 1], to);
    }
  }
}

template <class T>
__device__ __forceinline__ void note_end(float of_thread, const Walk<T>& walk, const Place& place, int block) {
  const float sum = sum_over_lanes(of_thread);
  if (lane_afresh() != 0) return;
  walk.decay_gradient.ends[((place.segment.block0 + block) * std::int64_t{walk.heads} + place.head) * kLinearWarps + warp_of_group()] = sum;
}

/// The states of blocks are bf16 for every storage type: f16 might not hold them.
template <class T, int width>
__device__ __forceinline__ void note_state(typename LinearTiles<T, width>::State& state, const Walk<T>& walk, const Place& place,
                                           int block) {
  for_each_pair<T, width>(state, walk, place, block,
                          [](float low, float high, std::uint32_t* to) { *to = Numbers<__nv_bfloat16>::pack(low, high); });
}
template <class T, int width>
__device__ __forceinline__ void meet_state(typename LinearTiles<T, width>::State& state, const Walk<T>& walk, const Place& place,
                                           int block) {
  float dot = 0.0f;
  for_each_pair<T, width>(state, walk, place, block, [&](float low, float high, const std::uint32_t* from) {
    const float2 pair = Pairs<__nv_bfloat16>::unpack(*from);
    dot += pair.x * low + pair.y * high;
  });
  note_end(walk.scale_out * dot, walk, place, block);
}
template <class T, int width>
__device__ __forceinline__ void meet_outgoing(typename LinearTiles<T, width>::State& state, const Walk<T>& walk, const Place& place,
                                              int block) {
  float dot = 0.0f;
  if (place.segment.leaves != 0) {
    const float* const from = at(walk.decay_gradient.doutgoing, place.segment.unit, place.head);
    for_each_of_state<T, width>(
        state, walk, [&](float number, int row, int column) { dot += number * from[row * walk.state_row + column * walk.state_column]; });
  }
  note_end(dot, walk, place, block);
}

enum class WalkKind { states, results, gradients };

/// What lies in a block's shared memory: tiles of two chunks, scores of each group, decays, the segment.
template <class T, int width, WalkKind kind, int groups>
struct WalkMemory {
  using Tiles = LinearTiles<T, width>;
  static constexpr bool kApplies = kind != WalkKind::states;
  static constexpr int kTiles = groups == 2 ? 4 : kApplies ? 3 : 2;
  static constexpr int kScores = 2 * kTiles * Tiles::Rows::kBytes;
  static constexpr int kLogDecay = kScores + (kApplies ? groups * Tiles::Scores::kBytes : 0);
  static constexpr int kFactors = kLogDecay + 2 * kChunkRows * 4;
  static constexpr int kSegment = kFactors + groups * kLinearWarps * 3 * kChunkRows * 4;
  static constexpr int kBytes = kSegment + Tiles::kSegmentBytes;
};

/// The walk over a segment: with results, or for the state behind it alone, which goes to the slot of the segment's number. Two groups
/// take the same chunks in different roles: the second walk's k and v are the first one's v and k.
template <class T, int width, WalkKind kind, int groups>
__device__ __forceinline__ void walk_segment(const WalkSet<T, groups>& set) {
  constexpr bool applies = kind != WalkKind::states, notes = kind == WalkKind::gradients;
  constexpr int kBlockChunks = static_cast<int>(kDecayBlock / kLinearChunk);
  using Memory = WalkMemory<T, width, kind, groups>;
  using Tiles = LinearTiles<T, width>;
  using Rows = typename Tiles::Rows;
  const int group = groups == 1 ? 0 : warp_afresh() / kLinearWarps;
  const Walk<T>&walk = set.walk[group], &first_walk = set.walk[0];
  unsigned char* const memory = dynamic_shared_memory();
  Segment* const segment = reinterpret_cast<Segment*>(memory + Memory::kSegment);
  if (threadIdx.x == 0) *segment = first_walk.segments[blockIdx.x / first_walk.heads];
  __syncthreads();
  const Place place{*segment, static_cast<std::int32_t>(blockIdx.x % first_walk.heads), first_walk.reverse};
  const std::uint32_t base = shared_address(memory);
  const auto tile = [&](int stage, int which) {
    return Rows{base + static_cast<std::uint32_t>((stage * Memory::kTiles + which) * Rows::kBytes)};
  };
  const typename Tiles::Scores scores{base + static_cast<std::uint32_t>(Memory::kScores + group * Tiles::Scores::kBytes)};
  float* const log_decay = reinterpret_cast<float*>(memory + Memory::kLogDecay);  // [2][kChunkRows]
  float* const factors = reinterpret_cast<float*>(memory + Memory::kFactors) + warp_afresh() * 3 * kChunkRows;
  ChunkDecay decay{factors, factors + kChunkRows, factors + 2 * kChunkRows, 0.0f};
  const auto copy = [&](int step) {
    constexpr int kThreads = groups * kLinearThreads;
    copy_chunk<kThreads>(tile(step % 2, 0), first_walk.k, place, step, first_walk.width_k);
    copy_chunk<kThreads>(tile(step % 2, 1), first_walk.v, place, step, first_walk.width_v);
    if constexpr (applies) copy_chunk<kThreads>(tile(step % 2, 2), first_walk.q, place, step, first_walk.width_k);
    if constexpr (groups == 2) copy_chunk<kThreads>(tile(step % 2, 3), set.walk[1].q, place, step, set.walk[1].width_k);
    copy_log_decay(log_decay + step % 2 * kChunkRows, first_walk.log_decay, place, step);
    commit_copies();
  };

  typename Tiles::State state = {};
  const int steps = place.chunks();
  copy(0);
  load_state<T, width>(walk, place, state);
  float total = 0.0f;
  for (int step = 0; step < steps; ++step) {
    wait_copies<0>();
    __syncthreads();  // all have the chunk, and none reads the one before
    if (step + 1 < steps) copy(step + 1);
    fill_decay(log_decay + step % 2 * kChunkRows, decay);
    const int number = place.segment.chunk0 + place.chunk_of(step);
    const bool notes_down = notes && walk.decay_gradient.dots != nullptr;
    const bool starts_block = notes_down && number > 0 && number % kBlockChunks == 0;
    if constexpr (notes) {
      if (starts_block && !walk.reverse) note_state<T, width>(state, walk, place, number / kBlockChunks - 1);
    }
    const Rows k = tile(step % 2, group), v = tile(step % 2, 1 - group);
    if constexpr (applies) {
      const Rows q = tile(step % 2, 2 + group);
      make_scores<T, width>(q, k, scores, decay, walk.scale_values);
#pragma unroll 1  // unrolled, the rounded state would be kept from one to the next
      for (int first = 0; first < kChunkRows / 16; first += kSumRows) {
        LinearSums<width> sums = {};
        read_state<T, width>(q, state, decay, first, sums);
        if (first == 0) __syncthreads();  // scores are there
        add_chunk<T, width>(scores, v, first, sums);
        store_chunk<T, width>(sums, walk, place, step, first);
        if constexpr (notes) {
          if (notes_down) note_dots<T, width>(sums, walk, place, step, first);
        }
      }
      const bool is_met = notes_down && (walk.reverse ? starts_block : place.segment.ends != 0);
      if (step + 1 == steps && !is_met) break;
    }
    advance_state<T, width>(k, v, decay, walk.scale_values, state);
    total += decay.total;
    if constexpr (notes) {
      if (walk.reverse && starts_block) meet_state<T, width>(state, walk, place, number / kBlockChunks - 1);
      if (notes_down && !walk.reverse && place.segment.ends != 0 && step + 1 == steps)
        meet_outgoing<T, width>(state, walk, place, number / kBlockChunks);
    }
  }
  if constexpr (!applies) {
    const std::int64_t index = blockIdx.x / walk.heads;
    float* const to = slot_of(walk, index, place.head);
    for_each_of_state<T, width>(state, walk,
                                [&](float number, int row, int column) { to[row * walk.slot_row + column * walk.slot_column] = number; });
    if (threadIdx.x == 0) walk.totals[index * walk.heads + place.head] = exp2_fast(total);
  }
}

}  // namespace periplus::kernels::cuda::portable
