// The gradient of the delta rule's state from chunk to chunk, backwards (algorithms.md 6.3):
//
//   dnews = P^T dout + K~ dS,  dS := exp(g_C) dS + (scale exp(g) q)^T dout - w^T dnews
//
// with P and K~ as in 6.2, P scaled.
#include "kernels/cuda/portable_delta_parts.cuh"

namespace periplus::kernels::cuda::portable {
namespace {

template <class T, int width>
struct BackwardMemory {
  using Tiles = LinearTiles<T, width>;
  int q, k, w, dout, dnews, scores, rows, segment, bytes;
  constexpr BackwardMemory() : q(), k(), w(), dout(), dnews(), scores(), rows(), segment(), bytes() {
    DeltaLayout layout;
    q = layout.take(Tiles::Rows::kBytes), k = layout.take(Tiles::Rows::kBytes), w = layout.take(Tiles::Rows::kBytes);
    dout = layout.take(Tiles::Rows::kBytes), dnews = layout.take(Tiles::Rows::kBytes), scores = layout.take(Tiles::Scores::kBytes);
    rows = layout.take(DeltaRows::kBytes), segment = layout.take(Tiles::kSegmentBytes);
    bytes = layout.bytes;
  }
};

/// sums += P^T dout, of a row block of keys and the warp's columns.
template <class T, int width>
__device__ __forceinline__ void add_later(const SharedTile<T, kChunkRows, kChunkRows>& scores, const SharedTile<T, kChunkRows, width>& dout,
                                          int row, LinearSums<width, 1>& sums) {
  const int lane = lane_afresh();
  constexpr int kSlice = width / kLinearWarps;
#pragma unroll 1
  for (int inner = row; inner < kChunkRows / 16; ++inner) {
    const FragmentA a = scores.a_by_columns(row * 16, inner, lane);
#pragma unroll
    for (int pair = 0; pair < kSlice / 16; ++pair) {
      std::uint32_t b[4];
      dout.b_by_columns(b, warp_of_group() * kSlice + pair * 16, inner, lane);
      Numbers<T>::multiply(sums[0][2 * pair], a, b[0], b[1]);
      Numbers<T>::multiply(sums[0][2 * pair + 1], a, b[2], b[3]);
    }
  }
}

/// Notes dS behind a chunk, and its product with S before it.
template <class T, int width>
__device__ __forceinline__ void meet_chunk(const Delta<T>& delta, const Place& place, int chunk,
                                           typename LinearTiles<T, width>::State& state) {
  const std::int64_t numbers = std::int64_t{delta.width_k} * delta.width_v;
  store_state<T, width>(delta, of_chunk(delta.scratch.dstates, place, chunk, delta.heads, numbers), state);
  const T* const before = of_chunk(delta.scratch.states, place, chunk, delta.heads, numbers);
  float dot = 0.0f;
  for_each_pair_of_state<T, width>(state, delta.width_k, delta.width_v, [&](float first, float second, int row, int column) {
    const float2 pair = Pairs<T>::unpack(*reinterpret_cast<const std::uint32_t*>(before + column * delta.width_k + row));
    dot += pair.x * first + pair.y * second;
  });
  dot = sum_over_lanes(dot);
  if (lane_afresh() == 0) of_chunk(delta.scratch.met, place, chunk, delta.heads, kLinearWarps)[warp_of_group()] = dot;
}

template <class T, int width>
__global__ void __launch_bounds__(kLinearThreads, 2) delta_backward(const __grid_constant__ Delta<T> delta) {
  constexpr BackwardMemory<T, width> kMemory;
  using Tiles = LinearTiles<T, width>;
  using Rows = typename Tiles::Rows;
  unsigned char* const memory = dynamic_shared_memory();
  const Place place = take_segment(delta, memory + kMemory.segment);
  const std::uint32_t base = shared_address(memory);
  const Rows q{base + kMemory.q}, k{base + kMemory.k}, w{base + kMemory.w}, dout{base + kMemory.dout}, dnews{base + kMemory.dnews};
  const typename Tiles::Scores scores{base + kMemory.scores};
  DeltaRows rows(memory + kMemory.rows);
  const auto copy = [&](int chunk) {
    copy_rows(q, delta.q, delta.k.data, place, chunk, delta.width_k);
    copy_rows(k, delta.k, delta.k.data, place, chunk, delta.width_k);
    copy_rows(w, as_read(delta.scratch.w), delta.k.data, place, chunk, delta.width_k);
    copy_rows(dout, delta.dout, delta.k.data, place, chunk, delta.width_v);
    rows.copy(delta, place, chunk);
    commit_copies();
  };
  typename Tiles::State state = {};
  start_state<T, width>(delta, place, state);
  const int chunks = place.chunks();
  if (chunks > 0) copy(chunks - 1);
#pragma unroll 1
  for (int chunk = chunks - 1; chunk >= 0; --chunk) {
    wait_copies<0>();
    __syncthreads();
    fill_decay(rows.log_decay, rows.decay);
    const bool notes = delta.scratch.dnews.data != nullptr;
    if (notes) meet_chunk<T, width>(delta, place, chunk, state);
    make_scores<T, width>(q, k, scores, [&](int row, int column) { return delta.scale * rows.between(row, column); });
    __syncthreads();
#pragma unroll 1
    for (int row = 0; row < kChunkRows / 16; ++row) {
      LinearSums<width, 1> sums = {};
      multiply_state<T, width>(k, state, row, sums);
      for_each_sum<width>(sums, row, [&](float& first, float& second, int of_chunk, int) {
        first *= rows.decay.sunk[of_chunk], second *= rows.decay.sunk[of_chunk];
      });
      add_later<T, width>(scores, dout, row, sums);
      for_each_sum<width>(sums, row, [&](float first, float second, int of_chunk, int column) {
        dnews.put(of_chunk, column, Numbers<T>::pack(first, second));
      });
      if (notes) store_rows<T, width>(sums, 1.0f, delta.scratch.dnews, delta.width_v, place, chunk, row);
    }
    __syncwarp();  // a warp reads its own columns of them
    scale_state<T, width>(exp2_fast(rows.decay.total), state);
    add_to_state<T, width>(
        q, dout, [&](int row, int) { return delta.scale * rows.decay.grown[row]; }, state);
    add_to_state<T, width>(
        w, dnews, [](int, int) { return -1.0f; }, state);
    __syncthreads();  // none reads the chunk
    if (chunk > 0) copy(chunk - 1);
  }
  end_state<T, width>(delta, place, state);
}

}  // namespace

template <class T>
void launch_delta_backward(const Delta<T>& delta, std::int64_t segments, cudaStream_t stream) {
  with_delta_width(delta, [&]<int width>(std::integral_constant<int, width>) {
    launch_delta(delta_backward<T, width>, BackwardMemory<T, width>().bytes, delta, segments, stream);
  });
}
template void launch_delta_backward(const Delta<__nv_bfloat16>&, std::int64_t, cudaStream_t);
template void launch_delta_backward(const Delta<__half>&, std::int64_t, cudaStream_t);

}  // namespace periplus::kernels::cuda::portable
