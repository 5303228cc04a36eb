// Gradients of the delta rule's operands, chunk by chunk (algorithms.md 6.3), from the states before and the gradients behind each.
// A warp has 16 rows of the chunk. With Y = T^T dN, and as Nn = U - W S0, the formulas there shorten to
//
//   dL = -tril(Y Nn^T, -1),  Z = -Y S0^T
//
// so that neither U nor W is needed, nor dW rounded. In exponents of decay, queries and the keys of rows stand as rows do, all other keys
// as columns do, so that the gradient of the decay's sums is what the one give less what the others do:
//
//   dg_i = q_i dq_i + k_i (dk by rows - dk by columns)_i
#include "kernels/cuda/portable_delta.h"
#include "kernels/cuda/portable_delta_parts.cuh"

namespace periplus::kernels::cuda::portable {
namespace {

template <class T, int width>
struct GradientMemory {
  using Tiles = LinearTiles<T, width>;
  int dnews, q, dout, news, k, state, inverse, pull, scores, rows, sums, segment, bytes;
  constexpr GradientMemory() : dnews(), q(), dout(), news(), k(), state(), inverse(), pull(), scores(), rows(), sums(), segment(), bytes() {
    DeltaLayout layout;
    for (int* const tile : {&dnews, &q, &dout, &news, &k}) *tile = layout.take(Tiles::Rows::kBytes);
    state = layout.take(SharedTile<T, width, width>::kBytes);
    for (int* const square : {&inverse, &pull, &scores}) *square = layout.take(Tiles::Scores::kBytes);
    rows = layout.take(DeltaRows::kBytes), sums = layout.take((kChunkRows + kLinearWarps) * 4);
    segment = layout.take(Tiles::kSegmentBytes);
    bytes = layout.bytes;
  }
};

/// The warp's 16 rows of a matrix, by 8 columns, and of a square one over the chunk's rows, by blocks of 16 x 16.
template <int width>
using RowSums = float[width / 8][4];
using SquareSums = float[kChunkRows / 16][2][4];

/// What a kernel of gradients works on.
template <class T, int width>
struct GradientTiles {
  using Rows = SharedTile<T, kChunkRows, width>;
  using Square = SharedTile<T, kChunkRows, kChunkRows>;
  Rows dnews, q, dout, news, k;
  SharedTile<T, width, width> state;
  Square inverse, pull, scores;  ///< pull: R = dL o D

  __device__ GradientTiles(std::uint32_t base, const GradientMemory<T, width>& at)
      : dnews{base + at.dnews},
        q{base + at.q},
        dout{base + at.dout},
        news{base + at.news},
        k{base + at.k},
        state{base + at.state},
        inverse{base + at.inverse},
        pull{base + at.pull},
        scores{base + at.scores} {}
};

/// sums += a(inner) b over blocks of 16 inner rows of the tile, columns from `first` on.
template <class T, int rows, int width, int tiles, class A>
__device__ __forceinline__ void add_rows(float (&sums)[tiles][4], int begin, int end, const A& a, const SharedTile<T, rows, width>& b,
                                         int first = 0) {
  const int lane = lane_afresh();
#pragma unroll 1
  for (int inner = begin; inner < end; ++inner) {
    const FragmentA left = a(inner);
#pragma unroll
    for (int pair = 0; pair < tiles / 2; ++pair) {
      std::uint32_t right[4];
      b.b_by_columns(right, first + pair * 16, inner, lane);
      Numbers<T>::multiply(sums[2 * pair], left, right[0], right[1]);
      Numbers<T>::multiply(sums[2 * pair + 1], left, right[2], right[3]);
    }
  }
}
/// sums += left right^T, for blocks up to that of the warp's rows.
template <class T, int width>
__device__ __forceinline__ void add_square(SquareSums& sums, const FragmentA& left, const SharedTile<T, kChunkRows, width>& right,
                                           int inner) {
  const int lane = lane_afresh(), own = warp_of_group();
#pragma unroll
  for (int block = 0; block < kChunkRows / 16; ++block) {
    if (block > own) continue;
    std::uint32_t b[4];
    right.b_by_rows(b, block * 16, inner, lane);
    Numbers<T>::multiply(sums[block][0], left, b[0], b[1]);
    Numbers<T>::multiply(sums[block][1], left, b[2], b[3]);
  }
}
/// Sums as operands of following products.
template <class T, int width>
struct RoundedRows {
  FragmentA part[width / 16];
  __device__ explicit RoundedRows(const RowSums<width>& sums) {
#pragma unroll
    for (int i = 0; i < width / 4; ++i) {
      const float* const pair = sums[i / 4 * 2 + i % 4 / 2] + i % 2 * 2;
      part[i / 4].part[i % 4] = Numbers<T>::pack(pair[0], pair[1]);
    }
  }
};
/// tile := weight(row, column) sums on and below the diagonal.
template <class T, class Weight>
__device__ __forceinline__ void put_square(const SquareSums& sums, const SharedTile<T, kChunkRows, kChunkRows>& tile,
                                           const Weight& weight) {
  const int lane = lane_afresh(), own = warp_of_group();
#pragma unroll
  for (int block = 0; block < kChunkRows / 16; ++block) {
    if (block > own) continue;
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      const int row = own * 16 + lane / 4 + part % 2 * 8, column = block * 16 + lane % 4 * 2 + part / 2 * 8;
      const float* const pair = sums[block][part / 2] + part % 2 * 2;
      const float left = column <= row ? weight(row, column) * pair[0] : 0.0f;
      const float right = column + 1 <= row ? weight(row, column + 1) * pair[1] : 0.0f;
      tile.put(row, column, Numbers<T>::pack(left, right));
    }
  }
}

/// visit(number, the next column's, 0 or 1 for the upper or lower half of the rows, row, column), numbers by reference.
template <int tiles, class Visit>
__device__ __forceinline__ void for_each_of_rows(float (&sums)[tiles][4], const Visit& visit) {
  const int lane = lane_afresh(), row = warp_of_group() * 16 + lane / 4;
#pragma unroll
  for (int tile = 0; tile < tiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      visit(sums[tile][2 * half], sums[tile][2 * half + 1], half, row + half * 8, tile * 8 + lane % 4 * 2);
    }
  }
}
/// Rows times those of a tile, for the two rows of a lane: all lanes of a quad get them.
template <class T, int width, int tiles>
__device__ __forceinline__ float2 dots_of_rows(float (&sums)[tiles][4], const SharedTile<T, kChunkRows, width>& tile, int first = 0) {
  float dots[2] = {};
  for_each_of_rows(sums, [&](float left, float right, int half, int row, int column) {
    const float2 pair = pair_of(tile, row, first + column);
    dots[half] += pair.x * left + pair.y * right;
  });
  return {sum_over_lanes(dots[0], 4), sum_over_lanes(dots[1], 4)};
}
template <class T, int tiles>
__device__ __forceinline__ void store_all(float (&sums)[tiles][4], const Strided<T>& to, int width, const Place& place) {
  for_each_of_rows(sums, [&](float left, float right, int, int row, int column) {
    if (row >= place.rows(0) || column >= width) return;
    *reinterpret_cast<std::uint32_t*>(at(to, place.row_of(0, row), place.head) + column) = Numbers<T>::pack(left, right);
  });
}

/// Y = T^T dN gives dv. Returns <Y, v> of the lane's two rows.
template <class T, int width>
__device__ __forceinline__ float2 gradient_of_values(RowSums<width>& y, const DeltaRows& rows, const Delta<T>& delta, const Place& place) {
  float dots[2] = {};
  for_each_of_rows(y, [&](float& left, float& right, int half, int row, int column) {
    if (row < place.rows(0) && column < delta.width_v) {
      const T* const from = at(delta.v, place.row_of(0, row), place.head) + column;
      const float2 pair = Pairs<T>::unpack(*reinterpret_cast<const std::uint32_t*>(from));
      dots[half] += pair.x * left + pair.y * right;
    }
    left *= rows.beta[row], right *= rows.beta[row];
  });
  store_all(y, delta.dv, delta.width_v, place);
  return {sum_over_lanes(dots[0], 4), sum_over_lanes(dots[1], 4)};
}

/// pull := dL o D, and dk := -Z, both of Y. Returns <Y, v> of the lane's two rows.
template <class T, int width>
__device__ __forceinline__ float2 gradients_of_inverse(const GradientTiles<T, width>& t, const DeltaRows& rows, const Delta<T>& delta,
                                                       const Place& place, RowSums<width>& dk) {
  const int lane = lane_afresh(), own = warp_of_group();
  RowSums<width> y = {};
  add_rows(
      y, own, kChunkRows / 16, [&](int inner) { return t.inverse.a_by_columns(own * 16, inner, lane); }, t.dnews);
  const RoundedRows<T, width> rounded(y);
  const float2 dots = gradient_of_values<T, width>(y, rows, delta, place);
  SquareSums square = {};
#pragma unroll
  for (int inner = 0; inner < width / 16; ++inner) {
    add_square<T, width>(square, rounded.part[inner], t.news, inner);
#pragma unroll
    for (int pair = 0; pair < width / 16; ++pair) {
      std::uint32_t right[4];
      t.state.b_by_columns(right, pair * 16, inner, lane);
      Numbers<T>::multiply(dk[2 * pair], rounded.part[inner], right[0], right[1]);
      Numbers<T>::multiply(dk[2 * pair + 1], rounded.part[inner], right[2], right[3]);
    }
  }
  put_square(square, t.pull, [&](int row, int column) { return column < row ? -rows.between(row, column) : 0.0f; });
  return dots;
}

/// dq = scale (X K + exp(g) dO S^T), X being scaled in its tile. Returns <q, dq> of the lane's two rows.
template <class T, int width>
__device__ __forceinline__ float2 gradient_of_queries(const GradientTiles<T, width>& t, const DeltaRows& rows, const Delta<T>& delta,
                                                      const Place& place) {
  const int lane = lane_afresh(), own = warp_of_group();
  RowSums<width> dq = {};
  add_rows(
      dq, 0, width / 16, [&](int inner) { return t.dout.a_by_rows(own * 16, inner, lane); }, t.state);
  for_each_of_rows(dq, [&](float& left, float& right, int, int row, int) {
    const float factor = delta.scale * rows.decay.grown[row];
    left *= factor, right *= factor;
  });
  add_rows(
      dq, 0, own + 1, [&](int inner) { return t.scores.a_by_rows(own * 16, inner, lane); }, t.k);
  store_all(dq, delta.dq, delta.width_k, place);
  return dots_of_rows(dq, t.q);
}

/// dk += Nn dS^T exp(g_C - g), a few columns at a time. Returns <k, that> of the lane's two rows.
template <class T, int width>
__device__ __forceinline__ float2 add_state_to_keys(const GradientTiles<T, width>& t, const DeltaRows& rows, RowSums<width>& dk) {
  constexpr int kTiles = 4;
  const int lane = lane_afresh(), own = warp_of_group();
  float2 sum = {};
#pragma unroll
  for (int first = 0; first < width / 8; first += kTiles) {
    float part[kTiles][4] = {};
    add_rows(
        part, 0, width / 16, [&](int inner) { return t.news.a_by_rows(own * 16, inner, lane); }, t.state, first * 8);
    for_each_of_rows(part,
                     [&](float& left, float& right, int, int row, int) { left *= rows.decay.sunk[row], right *= rows.decay.sunk[row]; });
    const float2 dots = dots_of_rows(part, t.k, first * 8);
    sum.x += dots.x, sum.y += dots.y;
#pragma unroll
    for (int i = 0; i < kTiles * 4; ++i) dk[first + i / 4][i % 4] += part[i / 4][i % 4];
  }
  return sum;
}

/// dk += X^T Q + R^T diag(beta) K
template <class T, int width>
__device__ __forceinline__ void add_later_to_keys(const GradientTiles<T, width>& t, const DeltaRows& rows, RowSums<width>& dk) {
  const int lane = lane_afresh(), own = warp_of_group();
  add_rows(
      dk, own, kChunkRows / 16, [&](int inner) { return t.scores.a_by_columns(own * 16, inner, lane); }, t.q);
  add_rows(
      dk, own, kChunkRows / 16,
      [&](int inner) {
        FragmentA pull = t.pull.a_by_columns(own * 16, inner, lane);
#pragma unroll
        for (int part = 0; part < 4; ++part) {
          const float2 pair = Pairs<T>::unpack(pull.part[part]);
          const int row = inner * 16 + lane % 4 * 2 + part / 2 * 8;
          pull.part[part] = Numbers<T>::pack(pair.x * rows.beta[row], pair.y * rows.beta[row + 1]);
        }
        return pull;
      },
      t.k);
}

/// dlog_decay of a token: the sum of dg from it on, and what the whole chunk's decay has of the states.
template <class T>
__device__ __forceinline__ void store_decay_gradient(const float* sums, const DeltaRows& rows, const Delta<T>& delta, const Place& place) {
  if (warp_of_group() != 0 || delta.dlog_decay.data == nullptr) return;
  const int lane = lane_afresh();
  const float* const met = of_chunk(delta.scratch.met, place, 0, delta.heads, kLinearWarps);
  float whole = 0.0f, state = 0.0f;
  for (int warp = 0; warp < kLinearWarps; ++warp) whole += sums[kChunkRows + warp], state += met[warp];
  whole += exp2_fast(rows.decay.total) * state;
  const int row = kChunkRows - 2 - 2 * lane;  // and the next: lane 0 has the last two
  float sum = sums[row] + sums[row + 1];
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const float later = __shfl_up_sync(0xffffffffu, sum, distance);
    if (lane >= distance) sum += later;
  }
  const bool begins = place.segment.before == Segment::kZero;
  const auto store = [&](int at_row, float value) {
    if (at_row < place.rows(0)) *at(delta.dlog_decay, place.row_of(0, at_row), place.head) = at_row == 0 && begins ? 0.0f : value;
  };
  store(row, whole + sum);
  store(row + 1, whole + sum - sums[row]);
}

template <class T, int width>
__global__ void __launch_bounds__(kLinearThreads) delta_gradients(const __grid_constant__ Delta<T> delta) {
  constexpr GradientMemory<T, width> kMemory;
  static_assert(kMemory.bytes <= portable::delta::kSharedBytes);
  unsigned char* const memory = dynamic_shared_memory();
  const Place place = take_segment(delta, memory + kMemory.segment);
  const GradientTiles<T, width> t(shared_address(memory), kMemory);
  DeltaRows rows(memory + kMemory.rows);
  float* const sums = reinterpret_cast<float*>(memory + kMemory.sums);  // dg by row, then shares of dg_C by warp
  const int lane = lane_afresh(), own = warp_of_group();
  const std::int64_t numbers = std::int64_t{delta.width_k} * delta.width_v;
  const auto copy = [&](const auto& tile, const Strided<const T>& from, int used) { copy_rows(tile, from, delta.k.data, place, 0, used); };
  const auto copy_state = [&](T* states) {
    t.state.template copy_in<kLinearThreads>(of_chunk(states, place, 0, delta.heads, numbers), delta.width_k, delta.width_v, delta.width_k);
  };
  copy(t.dnews, as_read(delta.scratch.dnews), delta.width_v);
  copy(t.q, delta.q, delta.width_k);
  copy(t.dout, delta.dout, delta.width_v);
  copy(t.news, as_read(delta.scratch.news), delta.width_v);
  copy(t.k, delta.k, delta.width_k);
  t.inverse.template copy_in<kLinearThreads>(of_chunk(delta.scratch.inverse, place, 0, delta.heads, kChunkRows * kChunkRows), kChunkRows,
                                             kChunkRows, kChunkRows);
  copy_state(delta.scratch.states);
  rows.copy(delta, place, 0);
  commit_copies();
  wait_copies<0>();
  __syncthreads();
  fill_decay(rows.log_decay, rows.decay);

  RowSums<width> dk = {};
  const float2 of_values = gradients_of_inverse<T, width>(t, rows, delta, place, dk);
  SquareSums square = {};
#pragma unroll 1
  for (int inner = 0; inner < width / 16; ++inner) {
    add_square<T, width>(square, t.dout.a_by_rows(own * 16, inner, lane), t.news, inner);
  }
  put_square(square, t.scores, [&](int row, int column) { return delta.scale * rows.between(row, column); });
  __syncthreads();  // pull and scores are there

  for_each_of_rows(dk,
                   [&](float& left, float& right, int, int row, int) { left *= -rows.decay.grown[row], right *= -rows.decay.grown[row]; });
  add_rows(
      dk, 0, own + 1, [&](int inner) { return t.pull.a_by_rows(own * 16, inner, lane); }, t.k);
  const float2 by_rows = dots_of_rows(dk, t.k);  // without beta
  for_each_of_rows(dk, [&](float& left, float& right, int, int row, int) { left *= rows.beta[row], right *= rows.beta[row]; });
  const float2 of_queries = gradient_of_queries(t, rows, delta, place);
  __syncthreads();  // none reads the state before
  copy_state(delta.scratch.dstates);
  commit_copies();
  add_later_to_keys(t, rows, dk);
  wait_copies<0>();
  __syncthreads();
  const float2 of_state = add_state_to_keys(t, rows, dk), of_keys = dots_of_rows(dk, t.k);
  store_all(dk, delta.dk, delta.width_k, place);

  const float by_warp = sum_over_lanes(lane % 4 == 0 ? of_state.x + of_state.y : 0.0f);
  if (lane == 0) sums[kChunkRows + own] = by_warp;
  const auto finish_row = [&](int row, float values, float by_row, float query, float key) {
    sums[row] = query + 2.0f * rows.beta[row] * by_row - key;
    if (row < place.rows(0)) *at(delta.dbeta, place.row_of(0, row), place.head) = values + by_row;
  };
  if (lane % 4 == 0) {
    finish_row(own * 16 + lane / 4, of_values.x, by_rows.x, of_queries.x, of_keys.x);
    finish_row(own * 16 + lane / 4 + 8, of_values.y, by_rows.y, of_queries.y, of_keys.y);
  }
  __syncthreads();
  store_decay_gradient(sums, rows, delta, place);
}

}  // namespace

template <class T>
void launch_delta_gradients(const Delta<T>& delta, std::int64_t segments, cudaStream_t stream) {
  with_delta_width(delta, [&]<int width>(std::integral_constant<int, width>) {
    launch_delta(delta_gradients<T, width>, GradientMemory<T, width>().bytes, delta, segments, stream);
  });
}
template void launch_delta_gradients(const Delta<__nv_bfloat16>&, std::int64_t, cudaStream_t);
template void launch_delta_gradients(const Delta<__half>&, std::int64_t, cudaStream_t);

}  // namespace periplus::kernels::cuda::portable
