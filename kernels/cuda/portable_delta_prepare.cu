// The delta rule's chunks in WY form (algorithms.md 6.2): what a chunk's tokens take from each other.
#include "kernels/cuda/portable_delta_parts.cuh"

namespace periplus::kernels::cuda::portable {
namespace {

/// A matrix of f32 over a chunk's rows, in shared memory.
struct ChunkMatrix {
  static constexpr int kStride = kChunkRows + 4;  ///< Rows of a fragment lie in different banks.
  static constexpr int kBytes = kChunkRows * kStride * 4;
  float* numbers;
  __device__ float& at(int row, int column) const { return numbers[row * kStride + column]; }
};

template <class T, int width>
struct PrepareMemory {
  using Tiles = LinearTiles<T, width>;
  int k, v, lower, inverse, rows, segment, bytes;
  constexpr PrepareMemory() : k(), v(), lower(), inverse(), rows(), segment(), bytes() {
    DeltaLayout layout;
    k = layout.take(Tiles::Rows::kBytes), v = layout.take(Tiles::Rows::kBytes);
    lower = layout.take(ChunkMatrix::kBytes), inverse = layout.take(ChunkMatrix::kBytes);
    rows = layout.take(DeltaRows::kBytes), segment = layout.take(Tiles::kSegmentBytes);
    bytes = layout.bytes;
  }
};

/// The inverse of a diagonal block of I + L by forward substitution: a lane has a column.
__device__ __forceinline__ void invert_block(const ChunkMatrix& lower, const ChunkMatrix& inverse, int block) {
  const int column = lane_afresh() % 16, first = block * 16;
  float x[16];
#pragma unroll
  for (int row = 0; row < 16; ++row) {
    x[row] = row == column ? 1.0f : 0.0f;
#pragma unroll
    for (int other = 0; other < row; ++other) x[row] -= lower.at(first + row, first + other) * x[other];
  }
#pragma unroll
  for (int row = 0; row < 16; ++row) inverse.at(first + row, first + column) = x[row];
}

/// Blocks below the diagonal one of a column of blocks, from the top: T_IJ = -T_II sum_K L_IK T_KJ over J <= K < I. A lane has a column
/// and half of the rows.
__device__ __forceinline__ void invert_below(const ChunkMatrix& lower, const ChunkMatrix& inverse, int column_block) {
  const int lane = lane_afresh(), column = column_block * 16 + lane % 16, half = lane / 16 * 8;
#pragma unroll 1
  for (int block = column_block + 1; block < kChunkRows / 16; ++block) {
    const int first = block * 16 + half;
    float sum[8] = {};
    // sum += matrix[these rows, 16 columns from `from` on] inverse[as many rows, the column]
    const auto add_product = [&](const ChunkMatrix& matrix, int from) {
#pragma unroll 1
      for (int inner = from; inner < from + 16; inner += 4) {
        float part[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) part[i] = inverse.at(inner + i, column);
#pragma unroll
        for (int row = 0; row < 8; ++row) {
          const float4 of_row = *reinterpret_cast<const float4*>(&matrix.at(first + row, inner));
          sum[row] += of_row.x * part[0] + of_row.y * part[1] + of_row.z * part[2] + of_row.w * part[3];
        }
      }
    };
    for (int other = column_block; other < block; ++other) add_product(lower, other * 16);
    __syncwarp();
#pragma unroll
    for (int row = 0; row < 8; ++row) inverse.at(first + row, column) = -sum[row], sum[row] = 0.0f;
    __syncwarp();
    add_product(inverse, block * 16);
    __syncwarp();
#pragma unroll
    for (int row = 0; row < 8; ++row) inverse.at(first + row, column) = sum[row];
    __syncwarp();
  }
}

/// to := T diag(factor of rows) from, of which a warp has a slice of columns.
template <class T, int width, class Factor>
__device__ __forceinline__ void multiply_by_inverse(const ChunkMatrix& inverse, const SharedTile<T, kChunkRows, width>& from,
                                                    const Factor& factor, const Strided<T>& to, int width_to, const Place& place) {
  const int lane = lane_afresh();
  constexpr int kSlice = width / kLinearWarps;
#pragma unroll 1
  for (int block = 0; block < kChunkRows / 16; ++block) {
    LinearSums<width, 1> sums = {};
#pragma unroll 1
    for (int inner = 0; inner <= block; ++inner) {
      FragmentA a;
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        const int row = block * 16 + lane / 4 + part % 2 * 8, column = inner * 16 + lane % 4 * 2 + part / 2 * 8;
        a.part[part] = Numbers<T>::pack(inverse.at(row, column) * factor(column), inverse.at(row, column + 1) * factor(column + 1));
      }
#pragma unroll
      for (int pair = 0; pair < kSlice / 16; ++pair) {
        std::uint32_t b[4];
        from.b_by_columns(b, warp_of_group() * kSlice + pair * 16, inner, lane);
        Numbers<T>::multiply(sums[0][2 * pair], a, b[0], b[1]);
        Numbers<T>::multiply(sums[0][2 * pair + 1], a, b[2], b[3]);
      }
    }
    store_rows<T, width>(sums, 1.0f, to, width_to, place, 0, block);
  }
}

template <class T, int width>
__global__ void __launch_bounds__(kLinearThreads, 2) delta_prepare(const __grid_constant__ Delta<T> delta) {
  constexpr PrepareMemory<T, width> kMemory;
  using Rows = typename LinearTiles<T, width>::Rows;
  unsigned char* const memory = dynamic_shared_memory();
  const Place place = take_segment(delta, memory + kMemory.segment);
  const std::uint32_t base = shared_address(memory);
  const Rows k{base + kMemory.k}, v{base + kMemory.v};
  DeltaRows rows(memory + kMemory.rows);
  const ChunkMatrix lower{reinterpret_cast<float*>(memory + kMemory.lower)}, inverse{reinterpret_cast<float*>(memory + kMemory.inverse)};
  copy_rows(k, delta.k, delta.k.data, place, 0, delta.width_k);
  copy_rows(v, delta.v, delta.k.data, place, 0, delta.width_v);
  rows.copy(delta, place, 0);
  commit_copies();
  wait_copies<0>();
  __syncthreads();
  fill_decay(rows.log_decay, rows.decay);
  for_each_score<T, width>(k, k, [&](int row, int column, float first, float second) {
    lower.at(row, column) = column < row ? rows.beta[row] * rows.between(row, column) * first : 0.0f;
    lower.at(row, column + 1) = column + 1 < row ? rows.beta[row] * rows.between(row, column + 1) * second : 0.0f;
  });
  __syncthreads();
  invert_block(lower, inverse, warp_of_group());
  __syncthreads();
  invert_below(lower, inverse, warp_of_group());
  __syncthreads();
  if (delta.scratch.inverse != nullptr) {
    T* const to = of_chunk(delta.scratch.inverse, place, 0, delta.heads, kChunkRows * kChunkRows);
    for (int item = static_cast<int>(threadIdx.x); item < kChunkRows * kChunkRows / 2; item += kLinearThreads) {
      const int row = item / (kChunkRows / 2), column = item % (kChunkRows / 2) * 2;
      const bool above = row / 16 < column / 16;
      *reinterpret_cast<std::uint32_t*>(to + row * kChunkRows + column) =
          above ? 0u : Numbers<T>::pack(inverse.at(row, column), inverse.at(row, column + 1));
    }
  }
  multiply_by_inverse<T, width>(
      inverse, k, [&](int row) { return rows.beta[row] * rows.decay.grown[row]; }, delta.scratch.w, delta.width_k, place);
  if (delta.scratch.u.data == nullptr) return;
  multiply_by_inverse<T, width>(
      inverse, v, [&](int row) { return rows.beta[row]; }, delta.scratch.u, delta.width_v, place);
}

}  // namespace

template <class T>
void launch_delta_prepare(const Delta<T>& delta, std::int64_t segments, cudaStream_t stream) {
  with_delta_width(delta, [&]<int width>(std::integral_constant<int, width>) {
    launch_delta(delta_prepare<T, width>, PrepareMemory<T, width>().bytes, delta, segments, stream);
  });
}
template void launch_delta_prepare(const Delta<__nv_bfloat16>&, std::int64_t, cudaStream_t);
template void launch_delta_prepare(const Delta<__half>&, std::int64_t, cudaStream_t);

}  // namespace periplus::kernels::cuda::portable
