#pragma once
// Linear attention with a decay per channel of the keys, on matrix instructions, in chunks of 64 tokens (algorithms.md 5.1, 5.6). As
// portable_linear.cuh, but the decay is a vector: of the channels that results and states have in common with keys. In the roles of a
// walk these are the channels of q and k for outputs and dv,
//
//   out_i = scale_out (exp(g_i) q_i S + sum_j P_ij v_j),  P_ij = scale_values sum_c q_ic exp(g_ic - g_jc) k_jc
//
// and those of v for dq and dk, whose scores have none:
//
//   out_ic = scale_out (exp(g_ic) (q_i S)_c + sum_j P_ij exp(g_ic - g_jc) v_jc),  P_ij = scale_values q_i k_j
//
// exp(g_i - g_j) does not factor without positive exponents. It does where a row lies between i and j: so between sub-blocks of 16 rows
// it is products of matrices, and inside of one it is worked out number by number, in f32.
//
// A block has one chunk at a time, and two blocks share a multiprocessor, so that one's copies hide behind the other's products.

#include "kernels/cuda/portable_channels_parts.cuh"
#include "kernels/cuda/portable_linear.cuh"

namespace periplus::kernels::cuda::portable {

/// What the decay is of, and what comes out: states and results by the channels of keys, or gradients by those of values.
enum class ChannelWalk { states, by_key, by_value };

template <class T, int width>
struct ChannelMemory {
  using Tiles = LinearTiles<T, width>;
  static constexpr int kScores = 3 * Tiles::Rows::kBytes;
  static constexpr int kDecay = kScores + Tiles::Scores::kBytes;
  static constexpr int kStages = kDecay + ChannelDecay<width>::kBytes;
  static constexpr int kSegment = kStages + kLinearWarps * ValueStage<T, width>::kBytes;
  static constexpr int kBytes = kSegment + Tiles::kSegmentBytes;
  static_assert(ValueStage<T, width>::kBytes >= kSubRows * 16 * 4 && kDecay % 16 == 0 && kStages % 16 == 0);
};

/// partner times results of the row block, [row][head][channel].
template <class T, int width>
__device__ __forceinline__ void note_products(const LinearSums<width, 1>& sums, const Walk<T>& walk, const Place& place, int step,
                                              int row) {
  const DecayGradient<T>& notes = walk.decay_gradient;
  const int lane = lane_afresh(), first = warp_of_group() * (width / kLinearWarps) + lane % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int of_chunk = row * kSubRows + half * 8 + lane / 4;
    if (of_chunk >= place.rows(step)) continue;
    const std::int64_t token = place.row_of(step, of_chunk);
    const T* const partner = at(notes.partner, token, place.head);
    float* const to = notes.dots + (token * walk.heads + place.head) * walk.width_v;
#pragma unroll
    for (int narrow = 0; narrow < width / kLinearWarps / 8; ++narrow) {
      const int column = first + narrow * 8;
      if (column >= walk.width_v) continue;
      const float2 pair = Pairs<T>::unpack(*reinterpret_cast<const std::uint32_t*>(partner + column));
      *reinterpret_cast<float2*>(to + column) = {walk.scale_out * pair.x * sums[0][narrow][2 * half],
                                                 walk.scale_out * pair.y * sums[0][narrow][2 * half + 1]};
    }
  }
}

/// <S, dS> by channel behind a block: from what the rising walk noted of S, or from the gradient that comes in behind the run.
template <class T, int width>
__device__ __forceinline__ void meet_state_by_channel(typename LinearTiles<T, width>::State& state, const Walk<T>& walk, const Place& place,
                                                      int block) {
  const std::uint32_t* const noted = pairs_of_block<T, width>(walk, place, block);
  note_columns<T, width>(state, walk, place, block, [&](float low, float high, int tall, int wide, int half) {
    const int number = (tall * LinearTiles<T, width>::kWide + wide) * 2 + half;
    const float2 pair = Pairs<__nv_bfloat16>::unpack(noted[number * kLinearThreads]);
    return walk.scale_out * (pair.x * low + pair.y * high);
  });
}
template <class T, int width>
__device__ __forceinline__ void meet_outgoing_by_channel(typename LinearTiles<T, width>::State& state, const Walk<T>& walk,
                                                         const Place& place, int block) {
  using Tiles = LinearTiles<T, width>;
  const bool leaves = place.segment.leaves != 0;
  const float* const from = leaves ? at(walk.decay_gradient.doutgoing, place.segment.unit, place.head) : nullptr;
  const int lane = lane_afresh(), first = warp_of_group() * Tiles::kSlice;
  note_columns<T, width>(state, walk, place, block, [&](float low, float high, int tall, int wide, int half) {
    const int row = wide * 8 + lane % 4 * 2, column = first + tall * 16 + lane / 4 + half * 8;
    if (!leaves || row >= walk.width_k || column >= walk.width_v) return 0.0f;
    const float* const two = from + row * walk.state_row + column * walk.state_column;
    return two[0] * low + two[walk.state_row] * high;
  });
}

/// Scores by the channels of keys: a warp has a sub-block of the diagonal, and one or two of those below.
template <class T, int width>
__device__ __forceinline__ void make_channel_scores(const SharedTile<T, kChunkRows, width>& q, const SharedTile<T, kChunkRows, width>& k,
                                                    const SharedTile<T, kChunkRows, kChunkRows>& scores, const ChannelDecay<width>& decay,
                                                    float scale, float* stage) {
  const int warp = warp_of_group();
  const int row = warp == 0 ? 3 : warp;
  make_scores_below<T, width>(q, k, scores, decay, scale, row, warp == 3 ? 1 : 0, warp < 2 ? 1 : 2);
  make_scores_on<T, width>(q, k, scores, decay, scale, warp, stage);
}

/// Results of a chunk by the channels of keys. Rounds decayed queries and keys into their tiles.
template <class T, int width>
__device__ __forceinline__ void apply_by_key(const SharedTile<T, kChunkRows, width> (&tile)[3],
                                             const SharedTile<T, kChunkRows, kChunkRows>& scores, const ChannelDecay<width>& decay,
                                             const Walk<T>& walk, const Place& place, int step, float* stage,
                                             const typename LinearTiles<T, width>::State& state) {
  const auto& [k, v, q] = tile;
  make_channel_scores<T, width>(q, k, scores, decay, walk.scale_values, stage);
  __syncthreads();  // scores are there, and none reads queries and keys
  weigh_tile<T, width>(q, [&](int row, int channel) { return exp2_of_difference(decay.pair(row, channel), {0.0f, 0.0f}); });
  __syncthreads();
#pragma unroll 1  // unrolled, the rounded state would be kept from one to the next
  for (int row = 0; row < kChunkRows / kSubRows; ++row) {
    LinearSums<width, 1> sums = {};
    multiply_state<T, width>(q, state, row, sums);
    add_chunk<T, width>(scores, v, row, sums);
    store_chunk<T, width>(sums, walk, place, step, row);
  }
}

/// The same by the channels of values, with notes.
template <class T, int width>
__device__ __forceinline__ void apply_by_value(const SharedTile<T, kChunkRows, width> (&tile)[3],
                                               const SharedTile<T, kChunkRows, kChunkRows>& scores, const ChannelDecay<width>& decay,
                                               const Walk<T>& walk, const Place& place, int step, float* stage,
                                               const typename LinearTiles<T, width>::State& state) {
  const auto& [k, v, q] = tile;
  make_scores<T, width>(q, k, scores, [&](int, int) { return walk.scale_values; });
  __syncthreads();
  const ValueStage<T, width> of_diagonal{stage};
#pragma unroll 1
  for (int row = 0; row < kChunkRows / kSubRows; ++row) {
    of_diagonal.fill(scores, v, decay, row);
    LinearSums<width, 1> sums = {};
    add_values_below<T, width>(q, scores, v, decay, state, row, sums);
    of_diagonal.add_to(sums);
    store_chunk<T, width>(sums, walk, place, step, row);
    note_products<T, width>(sums, walk, place, step, row);
  }
}

template <class T, int width, ChannelWalk kind>
__device__ __forceinline__ void walk_channels(const Walk<T>& walk) {
  constexpr int kBlockChunks = static_cast<int>(kDecayBlock / kLinearChunk);
  constexpr bool applies = kind != ChannelWalk::states, by_value = kind == ChannelWalk::by_value;
  using Memory = ChannelMemory<T, width>;
  using Tiles = LinearTiles<T, width>;
  using Rows = typename Tiles::Rows;
  unsigned char* const memory = dynamic_shared_memory();
  Segment* const segment = reinterpret_cast<Segment*>(memory + Memory::kSegment);
  if (threadIdx.x == 0) *segment = walk.segments[blockIdx.x / walk.heads];
  __syncthreads();
  const Place place{*segment, static_cast<std::int32_t>(blockIdx.x % walk.heads), walk.reverse};
  const std::uint32_t base = shared_address(memory);
  const Rows tile[3] = {{base}, {base + Rows::kBytes}, {base + 2 * Rows::kBytes}};
  const auto& [k, v, q] = tile;
  const typename Tiles::Scores scores{base + Memory::kScores};
  const ChannelDecay<width> decay{reinterpret_cast<float*>(memory + Memory::kDecay)};
  float* const stage = reinterpret_cast<float*>(memory + Memory::kStages + warp_afresh() * ValueStage<T, width>::kBytes);
  const auto copy = [&](int step) {
    copy_chunk<kLinearThreads>(k, walk.k, place, step, walk.width_k);
    copy_chunk<kLinearThreads>(v, walk.v, place, step, walk.width_v);
    if constexpr (applies) copy_chunk<kLinearThreads>(q, walk.q, place, step, walk.width_k);
    copy_channel_decay(decay, walk.log_decay, place, step, by_value ? walk.width_v : walk.width_k);
    commit_copies();
  };

  typename Tiles::State state = {};
  const int steps = place.chunks();
  copy(0);
  load_state<T, width>(walk, place, state);
  float total = 0.0f;  // of the thread's channel
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    wait_copies<0>();
    __syncthreads();
    sum_channel_decay(decay);
    __syncthreads();
    if (threadIdx.x < width) total += decay.last()[threadIdx.x];
    const int number = place.segment.chunk0 + place.chunk_of(step);
    const bool starts_block = by_value && number > 0 && number % kBlockChunks == 0;
    const bool ends_run = by_value && place.segment.ends != 0 && step + 1 == steps && !walk.reverse;
    if constexpr (by_value) {
      if (starts_block && !walk.reverse) note_state<T, width>(state, walk, place, number / kBlockChunks - 1);
      apply_by_value<T, width>(tile, scores, decay, walk, place, step, stage, state);
    } else if constexpr (applies) {
      apply_by_key<T, width>(tile, scores, decay, walk, place, step, stage, state);
    }
    if (applies && step + 1 == steps && !ends_run && !(walk.reverse && starts_block)) break;
    decay_state<T, width, !by_value>(decay, state);
    if constexpr (by_value) {
      add_to_state<T, width>(
          k, v, [&](int row, int column) { return walk.scale_values * exp2_fast(decay.last()[column] - decay.at(row, column)); }, state);
      if (starts_block && walk.reverse) meet_state_by_channel<T, width>(state, walk, place, number / kBlockChunks - 1);
      if (ends_run) meet_outgoing_by_channel<T, width>(state, walk, place, number / kBlockChunks);
    } else {
      weigh_tile<T, width>(k, [&](int row, int channel) {
        const float2 last = *reinterpret_cast<const float2*>(decay.last() + channel);
        return exp2_of_difference(last, decay.pair(row, channel));
      });
      __syncthreads();
      add_to_state<T, width>(
          k, v, [&](int, int) { return walk.scale_values; }, state);
    }
    __syncthreads();  // none reads the chunk
    if (step + 1 < steps) copy(step + 1);
  }
  if constexpr (!applies) {
    const std::int64_t index = blockIdx.x / walk.heads;
    float* const to = slot_of(walk, index, place.head);
    for_each_of_state<T, width>(state, walk,
                                [&](float number, int row, int column) { to[row * walk.slot_row + column * walk.slot_column] = number; });
    const auto channel = static_cast<int>(threadIdx.x);
    if (channel < walk.width_k) walk.totals[(index * walk.heads + place.head) * walk.width_k + channel] = exp2_fast(total);
  }
}

template <class T, int width, ChannelWalk kind>
__global__ void __launch_bounds__(kLinearThreads, 2) linear_channels(const __grid_constant__ Walk<T> walk) {
  walk_channels<T, width, kind>(walk);
}

template <ChannelWalk kind, class T>
void launch_channel_walk(const Walk<T>& walk, std::int64_t segments, cudaStream_t stream) {
  const auto with_width = [&]<int width>(std::integral_constant<int, width>) {
    constexpr int kBytes = ChannelMemory<T, width>::kBytes;
    constexpr auto kernel = linear_channels<T, width, kind>;
    periplus::cuda::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
                          "cudaFuncSetAttribute of linear attention by channel");
    // Two blocks must fit a multiprocessor.
    periplus::cuda::check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100),
                          "cudaFuncSetAttribute of linear attention by channel");
    launch("launch of linear attention by channel", kernel, dim3(static_cast<unsigned>(segments * walk.heads)), kLinearThreads, kBytes,
           stream, walk);
  };
  if (walk.width_k <= 64 && walk.width_v <= 64) {
    with_width(std::integral_constant<int, 64>{});
  } else {
    with_width(std::integral_constant<int, 128>{});
  }
}

}  // namespace periplus::kernels::cuda::portable
