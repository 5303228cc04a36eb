// What the warpgroups of the linear attention kernel share, and the producer: it copies the rows of chunks to shared memory and sums
// decays. Rows beyond a segment become zero, which the copy engine could not do in the middle of a tensor; so 128 threads copy.
#pragma once

#include "kernels/cuda/hopper_schedule.cuh"
#include "kernels/cuda/linear_walk.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/operands.cuh"

namespace periplus::kernels::cuda::hopper::linear {

inline constexpr int kRows = static_cast<int>(kLinearChunk), kWidth = 128;
inline constexpr int kConsumers = 2, kThreads = kWarpgroup * (1 + kConsumers);
inline constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
static_assert(registers_fit(kConsumers, kProducerRegisters, kConsumerRegisters));
inline constexpr int kPanel = kRows * 128;  // bytes, of 64 columns
inline constexpr int kTile = 2 * kPanel;

template <class T, int groups>
using WalkSet = portable::WalkSet<T, groups>;
template <class T>
using Walk = portable::Walk<T>;

/// `notes`: for the gradient of the decay.
template <int groups, bool notes>
struct Shared {
  static constexpr int kTiles = groups == 2 || notes ? 4 : 3, kStages = 12 / kTiles;
  /// Of the first walk: k, v, q; then the second walk's q, or what the first one's results are multiplied with for the decay's gradient.
  std::byte tile[kStages][kTiles][kTile];
  std::byte scores[kConsumers][kPanel];
  std::byte out[kTile];
  float sums[kStages][kRows];              ///< Decay up to a row in the walk's order, base 2.
  float sunk[kStages][kRows];              ///< exp of the decay from there to the chunk's end.
  float dots[groups == 2 ? 4 : 1][kRows];  ///< By warps, of the one warpgroup that has all columns.
  std::uint64_t full[kStages], free[kStages];
  Segment segment;  ///< Registers are short.
};

/// A block's segment and head. Rows lie in tiles as they lie in memory; a reverse walk takes chunks, and rows in them, from the end.
template <bool reverse>
struct Place {
  std::conditional_t<reverse, const Segment&, Segment> segment;  ///< Of two walks in shared memory: their registers are short.
  std::int32_t head;

  __device__ __forceinline__ int steps() const { return (segment.rows + kRows - 1) / kRows; }
  __device__ __forceinline__ int chunk_of(int step) const { return reverse ? steps() - 1 - step : step; }
  __device__ __forceinline__ std::int64_t first_row(int step) const { return segment.row0 + std::int64_t{chunk_of(step)} * kRows; }
  __device__ __forceinline__ int rows(int step) const { return min(kRows, segment.rows - chunk_of(step) * kRows); }
};

inline constexpr int kBlockChunks = static_cast<int>(kDecayBlock / kLinearChunk), kStatePairs = kWidth * kWidth / 2;

/// Where pairs of numbers of the state behind a block are.
template <class T, bool reverse>
__device__ __forceinline__ std::uint32_t* noted_state(const Walk<T>& walk, const Place<reverse>& place, int decay_block) {
  return walk.decay_gradient.states + ((place.segment.block0 + decay_block) * std::int64_t{walk.heads} + place.head) * kStatePairs;
}

/// Starts to copy a chunk's rows; the rest of the tile becomes zero.
template <class T, bool reverse>
__device__ __forceinline__ void copy_rows(std::byte* tile, const Strided<const T>& from, const Place<reverse>& place, int step, int width) {
  constexpr int kRowsAtOnce = kWarpgroup / 16;
  const auto thread = static_cast<int>(afresh(threadIdx.x));
  const int row = thread / 16, chunk = thread % 16, rows = 8 * chunk < width ? place.rows(step) - row : 0;
  const std::uint32_t to = shared_address(tile) + chunk / 8 * kPanel + swizzled(row, chunk % 8);
  const T* source = at(from, place.first_row(step) + row, afresh(place.head)) + 8 * chunk;
  const auto stride = kRowsAtOnce * static_cast<std::int32_t>(from.row);
#pragma unroll
  for (int i = 0; i < kRows / kRowsAtOnce; ++i) {
    copy_16_or_zero(to + i * kRowsAtOnce * 128, source + i * stride, kRowsAtOnce * i < rows);
  }
}

/// Decays of a chunk, of which each lane of a warp has two rows, in the order of the walk.
template <bool reverse>
struct Decays {
  __device__ __forceinline__ static int row(int lane, int i) { return reverse ? kRows - 1 - (2 * lane + i) : 2 * lane + i; }

  /// Starts to copy log_decay to `sums`. What a token of a reverse walk decays by is the number of the token behind it.
  __device__ __forceinline__ static void copy(const Strided<const float>& log_decay, const Place<reverse>& place, int step, int lane,
                                              float* sums) {
    const Segment& segment = place.segment;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::int64_t token = place.first_row(step) + row(lane, i) + (reverse ? 1 : 0);
      const bool behind = reverse && segment.ends != 0 && token == segment.row0 + segment.rows;
      const bool decays = log_decay.data != nullptr && row(lane, i) < place.rows(step) && !behind;
      copy_4_or_zero(shared_address(sums + row(lane, i)), decays ? at(log_decay, token, place.head) : nullptr, decays);
    }
  }
  /// Of what this lane has copied. Bounded, so that a token that forgets everything leaves the others their digits; 2^-128 is nothing.
  __device__ __forceinline__ static void sum(int lane, float* sums, float* sunk) {
    constexpr float kLeast = -128.0F;
    const float own[2] = {fmaxf(kLeast, kLog2E * sums[row(lane, 0)]), fmaxf(kLeast, kLog2E * sums[row(lane, 1)])};
    float sum = own[0] + own[1];
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const float lower = __shfl_up_sync(0xFFFFFFFF, sum, distance);
      if (lane >= distance) sum += lower;
    }
    const float lower = __shfl_up_sync(0xFFFFFFFF, sum, 1);
    const float first = (lane == 0 ? 0.0F : lower) + own[0], second = first + own[1];
    const float total = __shfl_sync(0xFFFFFFFF, second, 31);
    sums[row(lane, 0)] = first;
    sums[row(lane, 1)] = second;
    sunk[row(lane, 0)] = exp2_fast(total - first);
    sunk[row(lane, 1)] = exp2_fast(total - second);
  }
};

/// Sends for the states that the falling walk is to meet behind this chunk.
template <class T>
__device__ __forceinline__ void fetch_noted_state(const Walk<T>& walk, const Place<true>& place, int step, int thread) {
  const int number = place.segment.chunk0 + place.chunk_of(step);
  if (number == 0 || number % kBlockChunks != 0) return;
  const std::uint32_t* const state = noted_state(walk, place, number / kBlockChunks - 1);
  constexpr int kLine = 128 / 4;
#pragma unroll
  for (int i = 0; i < kStatePairs / kLine / kWarpgroup; ++i) prefetch_to_l2(state + (i * kWarpgroup + thread) * kLine);
}

template <class T, int groups, bool notes>
__device__ __forceinline__ void produce(Shared<groups, notes>& shared, const WalkSet<T, groups>& set, const Place<groups == 2>& place) {
  const Walk<T>& walk = set.walk[0];
  // Worked out where it is used: the producer has few registers.
  const auto thread = [] { return static_cast<int>(afresh(threadIdx.x)); };
  Stage<Shared<groups, notes>::kStages> stage;
  const auto hand_over = [&](int index) {
    if (thread() < 32) Decays<groups == 2>::sum(thread(), shared.sums[index], shared.sunk[index]);
    fence_async_proxy();  // what was copied is for wgmma
    barrier_arrive(&shared.full[index]);
  };
  const int steps = place.steps();
  for (int step = 0; step < steps; ++step, stage.next()) {
    const int index = stage.index();
    barrier_wait(&shared.free[index], stage.parity() ^ 1);
    auto& tile = shared.tile[index];
    copy_rows(tile[0], walk.k, place, step, walk.width_k);
    copy_rows(tile[1], walk.v, place, step, walk.width_v);
    copy_rows(tile[2], walk.q, place, step, walk.width_k);
    if constexpr (groups == 2) {
      copy_rows(tile[3], set.walk[1].q, place, step, set.walk[1].width_k);
    } else if constexpr (notes) {
      copy_rows(tile[3], walk.decay_gradient.partner, place, step, walk.width_v);
    }
    if (thread() < 32) Decays<groups == 2>::copy(walk.log_decay, place, step, thread(), shared.sums[index]);
    commit_copies();
    if constexpr (groups == 2 && notes) fetch_noted_state(set.walk[1], place, step, thread());
    if (step == 0) continue;
    wait_copies<1>();
    hand_over(stage.before().index());
  }
  wait_copies<0>();
  hand_over(stage.before().index());
}

}  // namespace periplus::kernels::cuda::hopper::linear
