// The state of a walk in the registers of a warpgroup, and what is noted of it for the gradient of the decay.
#pragma once

#include "kernels/cuda/hopper_linear_supply.cuh"

namespace periplus::kernels::cuda::hopper::linear {

// Worked out where they are used: what follows from them would be kept in registers since before the loop, which are short.
__device__ __forceinline__ int thread() { return static_cast<int>(afresh(threadIdx.x) % kWarpgroup); }
__device__ __forceinline__ int lane() { return lane_afresh(); }
__device__ __forceinline__ int warp() { return thread() / 32; }

/// S^T of the columns of v that a warpgroup has: numbers[block][4 j + 2 i + c] of a thread is in row 8 j + 2 (lane % 4) + c of S and column
/// 64 block_of(block) + 16 warp + lane / 4 + 8 i.
template <class T, int groups>
struct State {
  static constexpr int kBlocks = groups;  ///< Of 64 columns.
  static constexpr int kNumbers = kWidth / 2;

  __device__ __forceinline__ State(const Walk<T>& w, const Place<groups == 2>& p, int group) : walk(w), place(p), warpgroup(group) {}

  /// Of all columns.
  __device__ __forceinline__ int block_of(int block) const { return groups == 1 ? warpgroup : block; }

  __device__ __forceinline__ void load() {
#pragma unroll
    for (auto& of_block : numbers) {
#pragma unroll
      for (float& number : of_block) number = 0;
    }
    const std::int32_t before = place.segment.before;
    if (before == Segment::kZero) return;
    const bool incoming = before == Segment::kIncoming;
    const float* const from = incoming ? at(walk.incoming, place.segment.unit, place.head)
                                       : walk.slots + (std::int64_t{before} * walk.heads + place.head) * (walk.width_k * walk.width_v);
    const std::int32_t row_stride = incoming ? walk.state_row : walk.slot_row,
                       column_stride = incoming ? walk.state_column : walk.slot_column;
    const float scale = incoming ? walk.scale_incoming : 1.0F;
    for_each([&](float& number, int row, int column) { number = scale * from[row * row_stride + column * column_stride]; });
  }

  /// Pairs of two rows of the transpose, as the walk that meets them has them; each 8 x 8 numbers are a warp's. bf16 for every storage
  /// type: f16 might not hold them.
  __device__ __forceinline__ void note(int decay_block) const {
    const int lane = linear::lane(), warp = linear::warp();
    std::uint32_t* const to = noted_state(walk, place, decay_block) + lane;
#pragma unroll
    for (int number = 0; number < kNumbers; number += 2) {
      const int row = number / 4, column = 8 * warpgroup + 2 * warp + number / 2 % 2;  // of the 8 x 8 numbers
      const std::uint32_t pair = transposed(pack<__nv_bfloat16>(numbers[0][number], numbers[0][number + 1]));
      to[((row / 8 * 32 + 2 * column + row % 2) * 4 + row % 8 / 2) * 32] = pair;
    }
  }
  __device__ __forceinline__ void meet(int decay_block) const {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const std::uint32_t* const from = noted_state(walk, place, decay_block) + block * (kStatePairs / 2) + thread();
      float dot = 0;
#pragma unroll
      for (int i = 0; i < kNumbers / 2; ++i) {
        const float2 pair = unpack<__nv_bfloat16>(from[i * kWarpgroup]);
        dot += pair.x * numbers[block][2 * i] + pair.y * numbers[block][2 * i + 1];
      }
      note_end(block, decay_block, walk.scale_out * dot);
    }
  }
  /// Of the walk over queries, whose warpgroups have one block of columns each.
  __device__ __forceinline__ void meet_outgoing(int decay_block) {
    float dot = 0;
    if (place.segment.leaves != 0) {
      const float* const from = at(walk.decay_gradient.doutgoing, place.segment.unit, place.head);
      for_each([&](float number, int row, int column) { dot += number * from[row * walk.state_row + column * walk.state_column]; });
    }
    note_end(0, decay_block, dot);
  }

  const Walk<T>& walk;
  const Place<groups == 2>& place;
  const int warpgroup;
  float numbers[kBlocks][kNumbers];

 private:
  /// visit(number, its row, its column)
  template <class Visit>
  __device__ __forceinline__ void for_each(const Visit& visit) {
    const int lane = linear::lane(), warp = linear::warp();
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int number = 0; number < kNumbers; ++number) {
        const int row = 8 * (number / 4) + lane % 4 * 2 + number % 2;
        const int column = 64 * block_of(block) + 16 * warp + lane / 4 + 8 * (number / 2 % 2);
        if (row < walk.width_k && column < walk.width_v) visit(numbers[block][number], row, column);
      }
    }
  }
  __device__ __forceinline__ void note_end(int block, int decay_block, float of_thread) const {
    const float sum = sum_over_lanes(of_thread);
    const std::int64_t of_head = (place.segment.block0 + decay_block) * std::int64_t{walk.heads} + place.head;
    if (lane() == 0) walk.decay_gradient.ends[of_head * 8 + block_of(block) * 4 + warp()] = sum;
  }
};

}  // namespace periplus::kernels::cuda::hopper::linear
