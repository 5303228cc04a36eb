// The delta rule from chunk to chunk (algorithms.md 6.2): given u and w of a chunk, its tokens add u - w S under their keys, and the rest
// is linear attention.
#include "kernels/cuda/portable_delta_parts.cuh"

namespace periplus::kernels::cuda::portable {
namespace {

template <class T, int width, bool applies>
struct ForwardMemory {
  using Tiles = LinearTiles<T, width>;
  int k, u, w, q, scores, rows, segment, bytes;
  constexpr ForwardMemory() : k(), u(), w(), q(), scores(), rows(), segment(), bytes() {
    DeltaLayout layout;
    k = layout.take(Tiles::Rows::kBytes), u = layout.take(Tiles::Rows::kBytes), w = layout.take(Tiles::Rows::kBytes);
    if (applies) q = layout.take(Tiles::Rows::kBytes), scores = layout.take(Tiles::Scores::kBytes);
    rows = layout.take(DeltaRows::kBytes), segment = layout.take(Tiles::kSegmentBytes);
    bytes = layout.bytes;
  }
};

/// u := u - w S, in its tile. A warp reads and writes its own columns.
template <class T, int width>
__device__ __forceinline__ void make_news(const SharedTile<T, kChunkRows, width>& u, const SharedTile<T, kChunkRows, width>& w,
                                          const typename LinearTiles<T, width>::State& state, const Delta<T>& delta, const Place& place,
                                          int step) {
#pragma unroll 1
  for (int row = 0; row < kChunkRows / 16; ++row) {
    LinearSums<width, 1> sums = {};
    multiply_state<T, width>(w, state, row, sums);
    for_each_sum<width>(sums, row, [&](float& first, float& second, int of_chunk, int column) {
      const float2 pair = pair_of(u, of_chunk, column);
      first = pair.x - first, second = pair.y - second;
      u.put(of_chunk, column, Numbers<T>::pack(first, second));
    });
    if (delta.scratch.news.data != nullptr) store_rows<T, width>(sums, 1.0f, delta.scratch.news, delta.width_v, place, step, row);
  }
  __syncwarp();
}

template <class T, int width, bool applies>
__global__ void __launch_bounds__(kLinearThreads, 2) delta_forward(const __grid_constant__ Delta<T> delta) {
  constexpr ForwardMemory<T, width, applies> kMemory;
  using Tiles = LinearTiles<T, width>;
  using Rows = typename Tiles::Rows;
  unsigned char* const memory = dynamic_shared_memory();
  const Place place = take_segment(delta, memory + kMemory.segment);
  const std::uint32_t base = shared_address(memory);
  const Rows k{base + kMemory.k}, u{base + kMemory.u}, w{base + kMemory.w}, q{base + kMemory.q};
  const typename Tiles::Scores scores{base + kMemory.scores};
  DeltaRows rows(memory + kMemory.rows);
  const auto copy = [&](int step) {
    copy_rows(k, delta.k, delta.k.data, place, step, delta.width_k);
    copy_rows(w, as_read(delta.scratch.w), delta.k.data, place, step, delta.width_k);
    copy_rows(u, as_read(delta.ends.identity ? Strided<T>{} : delta.scratch.u), delta.k.data, place, step, delta.width_v);
    if constexpr (applies) copy_rows(q, delta.q, delta.k.data, place, step, delta.width_k);
    rows.copy(delta, place, step);
    commit_copies();
  };
  typename Tiles::State state = {};
  start_state<T, width>(delta, place, state);
  const int steps = place.chunks();
  if (steps > 0) copy(0);
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    wait_copies<0>();
    __syncthreads();
    fill_decay(rows.log_decay, rows.decay);
    if (delta.scratch.states != nullptr) {
      store_state<T, width>(delta, of_chunk(delta.scratch.states, place, step, delta.heads, delta.width_k * delta.width_v), state);
    }
    if constexpr (applies) {
      make_scores<T, width>(q, k, scores, [&](int row, int column) { return rows.between(row, column); });
    }
    make_news<T, width>(u, w, state, delta, place, step);
    if constexpr (applies) {
      __syncthreads();  // scores are there
#pragma unroll 1
      for (int row = 0; row < kChunkRows / 16; ++row) {
        LinearSums<width, 1> sums = {};
        multiply_state<T, width>(q, state, row, sums);
        for_each_sum<width>(sums, row, [&](float& first, float& second, int of_chunk, int) {
          first *= rows.decay.grown[of_chunk], second *= rows.decay.grown[of_chunk];
        });
        add_chunk<T, width>(scores, u, row, sums);
        store_rows<T, width>(sums, delta.scale, delta.out, delta.width_v, place, step, row);
      }
    }
    advance_state<T, width>(k, u, rows.decay, 1.0f, state);
    __syncthreads();  // none reads the chunk
    if (step + 1 < steps) copy(step + 1);
  }
  end_state<T, width>(delta, place, state);
}

}  // namespace

template <class T>
void launch_delta_forward(const Delta<T>& delta, std::int64_t segments, cudaStream_t stream) {
  with_delta_width(delta, [&]<int width>(std::integral_constant<int, width>) {
    if (delta.out.data != nullptr) {
      launch_delta(delta_forward<T, width, true>, ForwardMemory<T, width, true>().bytes, delta, segments, stream);
    } else {
      launch_delta(delta_forward<T, width, false>, ForwardMemory<T, width, false>().bytes, delta, segments, stream);
    }
  });
}
template void launch_delta_forward(const Delta<__nv_bfloat16>&, std::int64_t, cudaStream_t);
template void launch_delta_forward(const Delta<__half>&, std::int64_t, cudaStream_t);

}  // namespace periplus::kernels::cuda::portable
