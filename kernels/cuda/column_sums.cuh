#pragma once

#include "kernels/cuda/transformer.cuh"

/// Sums over the rows of dense matrices, in an order that the shape gives.
namespace periplus::kernels::cuda {

constexpr unsigned kSumColumns = 32, kSumParts = 16;  // of a block

/// sums [chunks, columns] (+)= the rows of each chunk of `values`: every kSumParts-th by one thread, then these sums in turn.
template <class A>
__global__ void __launch_bounds__(kSumColumns* kSumParts)
    sum_columns(std::int64_t rows, std::int64_t columns, std::int64_t rows_per_chunk, const A* values, A* sums, bool accumulate) {
  __shared__ A of_part[kSumParts][kSumColumns];
  const std::int64_t column = std::int64_t{blockIdx.x} * kSumColumns + threadIdx.x;
  const std::int64_t first = std::int64_t{blockIdx.y} * rows_per_chunk, end = min(first + rows_per_chunk, rows);
  A part = 0;
  if (column < columns) {
    for (std::int64_t row = first + threadIdx.y; row < end; row += kSumParts) part += values[row * columns + column];
  }
  of_part[threadIdx.y][threadIdx.x] = part;
  __syncthreads();
  if (threadIdx.y != 0 || column >= columns) return;
  A total = of_part[0][threadIdx.x];
  for (unsigned other = 1; other < kSumParts; ++other) total += of_part[other][threadIdx.x];
  A& sum = sums[std::int64_t{blockIdx.y} * columns + column];
  sum = accumulate ? sum + total : total;
}

/// sum [columns] += the rows of values [rows, columns].
template <class A>
void add_column_sums(std::int64_t rows, std::int64_t columns, const A* values, A* sum, cudaStream_t stream) {
  constexpr std::int64_t kRowsPerChunk = 512, kMostChunks = 65535;
  if (rows == 0 || columns == 0) return;
  const auto blocks = static_cast<unsigned>((columns + kSumColumns - 1) / kSumColumns);
  const dim3 threads(kSumColumns, kSumParts);
  const std::int64_t per_chunk = std::max(kRowsPerChunk, (rows + kMostChunks - 1) / kMostChunks),
                     chunks = (rows + per_chunk - 1) / per_chunk;
  constexpr const char* kWhat = "launch of a sum over rows";
  if (chunks == 1) return launch(kWhat, sum_columns<A>, blocks, threads, 0, stream, rows, columns, rows, values, sum, true);
  const Scratch<A> partial(chunks * columns, stream);
  launch(kWhat, sum_columns<A>, dim3(blocks, static_cast<unsigned>(chunks)), threads, 0, stream, rows, columns, per_chunk, values,
         partial.data(), false);
  launch(kWhat, sum_columns<A>, blocks, threads, 0, stream, chunks, columns, chunks, partial.data(), sum, true);
}

}  // namespace periplus::kernels::cuda
