#pragma once
// What the kernels of the delta rule share, beside the parts of portable_linear_parts.cuh. A block has one chunk at a time, its rows in
// rising order.

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear_delta.h"
#include "kernels/cuda/portable_linear_parts.cuh"

namespace periplus::kernels::cuda::portable {

/// Places in dynamic shared memory, one behind the other, at multiples of 128 bytes.
struct DeltaLayout {
  int bytes = 0;
  constexpr int take(int count) {
    const int at = bytes;
    bytes += (count + 127) / 128 * 128;
    return at;
  }
};

/// Factors of a chunk's rows: of decay by every warp for itself, beta as it came.
struct DeltaRows {
  static constexpr int kBytes = (2 + 3 * kLinearWarps) * kChunkRows * 4;
  float *log_decay, *beta;
  ChunkDecay decay;

  __device__ explicit DeltaRows(unsigned char* memory)
      : log_decay(reinterpret_cast<float*>(memory)), beta(log_decay + kChunkRows), decay{} {
    decay.sums = beta + kChunkRows + warp_afresh() * 3 * kChunkRows;
    decay.grown = decay.sums + kChunkRows;
    decay.sunk = decay.grown + kChunkRows;
  }
  template <class T>
  __device__ void copy(const Delta<T>& delta, const Place& place, int step) const {
    copy_log_decay(log_decay, delta.log_decay, place, step);
    const auto row = static_cast<int>(threadIdx.x);
    if (row >= kChunkRows) return;
    const bool inside = row < place.rows(step);
    copy_4_or_zero(shared_address(beta + row), inside ? at(delta.beta, place.row_of(step, row), place.head) : delta.beta.data, inside);
  }
  /// exp(g_i - g_j), i >= j
  __device__ float between(int i, int j) const { return exp2_fast(decay.sums[i] - decay.sums[j]); }
};

/// The segment of the block in shared memory.
template <class T>
__device__ __forceinline__ Place take_segment(const Delta<T>& delta, unsigned char* memory) {
  Segment* const segment = reinterpret_cast<Segment*>(memory);
  if (threadIdx.x == 0) *segment = delta.segments[blockIdx.x / delta.heads];
  __syncthreads();
  return {*segment, static_cast<std::int32_t>(blockIdx.x % delta.heads), false};
}

template <class T>
__device__ __forceinline__ Strided<const T> as_read(const Strided<T>& tensor) {
  return {tensor.data, tensor.row, tensor.head};
}

/// Starts to copy a chunk's rows, or zeros where there is no tensor.
template <class Tile, class T>
__device__ __forceinline__ void copy_rows(const Tile& tile, const Strided<const T>& from, const T* anything, const Place& place, int step,
                                          int width) {
  const bool there = from.data != nullptr;
  const Strided<const T> source = there ? from : Strided<const T>{anything, 0, 0};
  tile.template copy_in<kLinearThreads>(at(source, there ? place.row_of(step, 0) : 0, there ? place.head : 0), static_cast<int>(source.row),
                                        there ? place.rows(step) : 0, width);
}

/// [chunk][head] of something, of `count` numbers each.
template <class T>
__device__ __forceinline__ T* of_chunk(T* all, const Place& place, int chunk, std::int32_t heads, std::int64_t count) {
  return all + ((std::int64_t{place.segment.chunk0} + chunk) * heads + place.head) * count;
}

/// The two numbers of a tile in an even column and the next.
template <class T, int rows, int width>
__device__ __forceinline__ float2 pair_of(const SharedTile<T, rows, width>& tile, int row, int column) {
  return Pairs<T>::unpack(load_shared_4(tile.address(row, column / 8) + static_cast<std::uint32_t>(column % 8 * 2)));
}

template <class T, int width>
__device__ __forceinline__ void start_state(const Delta<T>& delta, const Place& place, typename LinearTiles<T, width>::State& state) {
  const DeltaEnds& ends = delta.ends;
  const bool continues = ends.start.data != nullptr && place.segment.before == Segment::kIncoming;
  if (!continues && !ends.identity) return;
  const float* const from = continues ? at(ends.start, place.segment.unit, place.head) : nullptr;
  for_each_pair_of_state<T, width>(state, delta.width_k, delta.width_v, [&](float& first, float& second, int row, int column) {
    first = continues ? from[row * delta.width_v + column] : row == column ? 1.0f : 0.0f;
    second = continues ? from[(row + 1) * delta.width_v + column] : row + 1 == column ? 1.0f : 0.0f;
  });
}
template <class T, int width>
__device__ __forceinline__ void end_state(const Delta<T>& delta, const Place& place, typename LinearTiles<T, width>::State& state) {
  if (delta.ends.end.data == nullptr) return;
  float* const to = at(delta.ends.end, place.segment.unit, place.head);
  for_each_pair_of_state<T, width>(state, delta.width_k, delta.width_v, [&](float first, float second, int row, int column) {
    to[row * delta.width_v + column] = first;
    to[(row + 1) * delta.width_v + column] = second;
  });
}
/// As [E][D], of storage type.
template <class T, int width>
__device__ __forceinline__ void store_state(const Delta<T>& delta, T* to, typename LinearTiles<T, width>::State& state) {
  for_each_pair_of_state<T, width>(state, delta.width_k, delta.width_v, [&](float first, float second, int row, int column) {
    *reinterpret_cast<std::uint32_t*>(to + column * delta.width_k + row) = Numbers<T>::pack(first, second);
  });
}

/// visit(number, the next column's number, row of the chunk, column), both by reference, for the sums of a row block.
template <int width, class Visit>
__device__ __forceinline__ void for_each_sum(LinearSums<width, 1>& sums, int row, const Visit& visit) {
  constexpr int kSlice = width / kLinearWarps;
  const int lane = lane_afresh(), first = warp_of_group() * kSlice + lane % 4 * 2;
#pragma unroll
  for (int narrow = 0; narrow < kSlice / 8; ++narrow) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      visit(sums[0][narrow][2 * half], sums[0][narrow][2 * half + 1], row * 16 + lane / 4 + half * 8, first + narrow * 8);
    }
  }
}

template <class T, class Kernel>
void launch_delta(const Kernel& kernel, int shared_bytes, const Delta<T>& delta, std::int64_t segments, cudaStream_t stream) {
  periplus::cuda::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
                        "cudaFuncSetAttribute of the delta rule");
  periplus::cuda::check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100),
                        "cudaFuncSetAttribute of the delta rule");
  launch("launch of the delta rule", kernel, dim3(static_cast<unsigned>(segments * delta.heads)), kLinearThreads,
         static_cast<std::size_t>(shared_bytes), stream, delta);
}

/// body(std::integral_constant<int, width>{}) for the padded width.
template <class T, class Body>
void with_delta_width(const Delta<T>& delta, const Body& body) {
  if (delta.width_k <= 64 && delta.width_v <= 64) return body(std::integral_constant<int, 64>{});
  body(std::integral_constant<int, 128>{});
}

}  // namespace periplus::kernels::cuda::portable
