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

#include "kernels/cuda/portable_linear_parts.cuh"

namespace periplus::kernels::cuda::portable {

/// dots of the partner with results, row by row.
template <class T, int width>
__device__ __forceinline__ void note_dots(const LinearSums<width>& sums, const Walk<T>& walk, const Place& place, int step, int first) {
  const DecayGradient<T>& notes = walk.decay_gradient;
  const int warp = warp_of_group(), lane = lane_afresh(), count = place.rows(step) - first * 16 - lane / 4;
  const int column = warp * (width / kLinearWarps) + lane % 4 * 2, direction = place.reverse ? -1 : 1;
  const std::int64_t token = place.row_of(step, first * 16 + lane / 4);
  const T* const partner = at(notes.partner, token, place.head) + column;
  float* const dots = notes.dots + (std::int64_t{warp} * walk.heads + place.head) * notes.rows + token;
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
      if (ahead < count && lane % 4 == 0) dots[direction * ahead] = dot;
    }
  }
}

/// Where this thread's pairs of a block's state are, kLinearThreads apart.
template <class T, int width>
__device__ __forceinline__ std::uint32_t* pairs_of_block(const Walk<T>& walk, const Place& place, int block) {
  using Tiles = LinearTiles<T, width>;
  constexpr int kPairs = Tiles::kTall * Tiles::kWide * 2 * kLinearThreads;
  return walk.decay_gradient.states + ((place.segment.block0 + block) * std::int64_t{walk.heads} + place.head) * kPairs +
         afresh(threadIdx.x) % kLinearThreads;
}

/// The numbers of the state, in pairs, to or from a block's place: visit(pair of this thread, where).
template <class T, int width, class Visit>
__device__ __forceinline__ void for_each_pair(typename LinearTiles<T, width>::State& state, const Walk<T>& walk, const Place& place,
                                              int block, const Visit& visit) {
  using Tiles = LinearTiles<T, width>;
  std::uint32_t* to = pairs_of_block<T, width>(walk, place, block);
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
      make_scores<T, width>(q, k, scores,
                            [&](int row, int column) { return walk.scale_values * exp2_fast(decay.sums[row] - decay.sums[column]); });
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
