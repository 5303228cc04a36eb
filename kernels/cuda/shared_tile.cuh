#pragma once

#include "kernels/cuda/mma.cuh"

/// A tile of 16-bit elements in shared memory, `width` to a row, in chunks of 16 bytes whose place is permuted within the row
/// so that eight rows of one column of chunks lie in different banks: what ldmatrix reads at a time.
namespace periplus::kernels::cuda {

template <class T, int rows, int width>
struct SharedTile {
  static constexpr int kChunks = width / 8;
  /// Chunks are permuted within as many.
  static constexpr int kCycle = kChunks % 8 == 0 ? 8 : kChunks % 4 == 0 ? 4 : 2;
  static constexpr int kBytes = rows * width * 2;
  static_assert(width % 16 == 0 && rows % 8 == 0);

  std::uint32_t base;  ///< Shared address, a multiple of 128.

  /// Rows of 4 (or 12) and of 2 chunks share the banks with their neighbours, so there fewer bits of the row are needed.
  static __device__ __forceinline__ int place(int row, int chunk) {
    if constexpr (kChunks % 8 == 0) return chunk ^ (row & 7);
    if constexpr (kChunks % 4 == 0) return chunk ^ (row >> 1 & 3);
    return chunk ^ (row >> 2 & 1);
  }
  __device__ __forceinline__ std::uint32_t address(int row, int chunk) const {
    return base + static_cast<std::uint32_t>((row * kChunks + place(row, chunk)) * 16);
  }

  /// visit(row, address) for the chunks that this thread copies in.
  template <int threads, class Visit>
  __device__ __forceinline__ void for_each_chunk(const Visit& visit) const {
    constexpr int kRowsAtOnce = threads / kCycle;
    static_assert(rows % kRowsAtOnce == 0 && kRowsAtOnce % 8 == 0);
    const unsigned thread = afresh(threadIdx.x);
    const int first_row = static_cast<int>(thread / kCycle), first_chunk = static_cast<int>(thread % kCycle);
    const std::uint32_t first = address(first_row, first_chunk);
#pragma unroll
    for (int row = 0; row < rows; row += kRowsAtOnce) {
#pragma unroll
      for (int chunk = 0; chunk < kChunks; chunk += kCycle) {
        visit(first_row + row, first + static_cast<std::uint32_t>((row * kChunks + chunk) * 16));
      }
    }
  }

  /// Starts to copy `count` rows of `used` columns, a multiple of 8; the rest becomes zero. The address walks instead of being
  /// worked out for each chunk, which the compiler would do once before the caller's loop and keep in registers.
  template <int threads>
  __device__ __forceinline__ void copy_in(const T* from, int row_stride, int count, int used) const {
    constexpr int kRowsAtOnce = threads / kCycle;
    const unsigned thread = afresh(threadIdx.x);
    const int first_row = static_cast<int>(thread / kCycle), first_chunk = static_cast<int>(thread % kCycle);
    const std::uint32_t to = address(first_row, first_chunk);
    from += first_row * row_stride + first_chunk * 8;
#pragma unroll
    for (int row = 0; row < rows; row += kRowsAtOnce, from += kRowsAtOnce * row_stride) {
#pragma unroll
      for (int chunk = 0; chunk < kChunks; chunk += kCycle) {
        copy_16_or_zero(to + static_cast<std::uint32_t>((row * kChunks + chunk) * 16), from + chunk * 8,
                        first_row + row < count && (first_chunk + chunk) * 8 < used);
      }
    }
  }

  /// Replaces chunks that hold infinity or NaN by zeros and notes their rows in `marks`. Looks at this thread's own copies only,
  /// so that it needs no barrier after wait_copies().
  template <int threads>
  __device__ __forceinline__ bool remove_non_finite(std::uint32_t* marks) const {
    bool found = false;
    for_each_chunk<threads>([&](int row, std::uint32_t chunk) {
      const uint4 word = load_shared_16(chunk);
      if (!holds_non_finite<T>(word.x) && !holds_non_finite<T>(word.y) && !holds_non_finite<T>(word.z) && !holds_non_finite<T>(word.w))
        return;
      found = true;
      atomicOr(marks + row / 32, 1u << row % 32);
      clear_shared_16(chunk);
    });
    return found;
  }

  /// Two neighbours, the first in an even column.
  __device__ __forceinline__ void put(int row, int column, std::uint32_t both) const {
    store_shared_4(address(row, column / 8) + static_cast<std::uint32_t>(column % 8 * 2), both);
  }

  // Fragments; `lane` is the caller's. "by rows" means that the tile's rows are the outer dimension (m or n) of the product,
  // "by columns" that they are the inner one (k).

  /// A: outer [row, row + 16), inner columns [16 k, 16 k + 16).
  __device__ __forceinline__ FragmentA a_by_rows(int row, int k, int lane) const {
    FragmentA a;
    load_matrices(a.part, address(row, lane % 16, k * 2, lane / 16));
    return a;
  }
  /// A: outer columns [column, column + 16), inner rows [16 k, 16 k + 16).
  __device__ __forceinline__ FragmentA a_by_columns(int column, int k, int lane) const {
    FragmentA a;
    load_matrices_transposed(a.part, address(k * 16, lane % 8 + lane / 16 * 8, column / 8, lane / 8 % 2));
    return a;
  }
  /// B twice, of outer rows [row, row + 8) in b[0], b[1] and [row + 8, row + 16) in b[2], b[3]; inner columns [16 k, 16 k + 16).
  __device__ __forceinline__ void b_by_rows(std::uint32_t (&b)[4], int row, int k, int lane) const {
    load_matrices(b, address(row, lane % 8 + lane / 16 * 8, k * 2, lane / 8 % 2));
  }
  /// B twice, of outer columns [column, column + 8) and [column + 8, column + 16); inner rows [16 k, 16 k + 16).
  __device__ __forceinline__ void b_by_columns(std::uint32_t (&b)[4], int column, int k, int lane) const {
    load_matrices_transposed(b, address(k * 16, lane % 16, column / 8, lane / 16));
  }

 private:
  /// address(row + lane_row, chunk + lane_chunk), written so that only `lane_*` costs instructions where row and chunk are
  /// constants: row is a multiple of 8, chunk even, lane_chunk 0 or 1.
  __device__ __forceinline__ std::uint32_t address(int row, int lane_row, int chunk, int lane_chunk) const {
    const int permuted = place(lane_row, lane_chunk) ^ chunk % kCycle;
    return base + static_cast<std::uint32_t>((lane_row * kChunks + permuted) * 16) +
           static_cast<std::uint32_t>((row * kChunks + chunk / kCycle * kCycle) * 16);
  }
};

}  // namespace periplus::kernels::cuda
