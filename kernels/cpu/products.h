// Products of packed f32 tiles, part of tiles.h.
//
// One block is kMaxRows rows by kMaxVectors vectors of sums held in registers: with AVX-512 24 of the 32 registers. Each
// step of the depth loads 4 vectors and broadcasts 6 numbers for 24 multiply-adds, so the two multiply-add ports are busy
// every cycle and the two load ports 10 times in 12 cycles. With 2 vectors, as forward has them, it is 8 loads for 12
// multiply-adds, and still enough sums to hide their latency. Operands in the second-level cache cost little as long as the
// blocks of one call share one that stays in the first: a cycle asks for at most a third of a cache line.
#pragma once

#include "kernels/cpu/lanes.h"
#include "kernels/cpu/tile_kernels.h"

namespace periplus::kernels::cpu {
namespace {

/// Rows that the next step reads: they come closer a few at a time between blocks of products, whereas packing would wait for
/// each of them. Those that come too early are pushed out again.
struct RowsAhead {
  const char* next = nullptr;
  std::int64_t stride = 0, bytes = 0, rows = 0;
  std::int64_t pace = 0;  ///< Cache lines a beat.

  void fetch() {
    constexpr std::int64_t kLine = 64;
    for (std::int64_t lines = 0; rows > 0 && lines < pace; lines += (bytes + kLine - 1) / kLine, next += stride, --rows) {
      for (std::int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(next + at, 0, 2);
    }
  }
};
template <class T>
RowsAhead rows_ahead(const Strided<T>& tensor, std::int64_t first, std::int64_t end, std::int64_t head, std::int64_t width,
                     std::int64_t pace = 16) {
  const auto size = static_cast<std::int64_t>(sizeof(T));
  return {reinterpret_cast<const char*>(tensor.data + first * tensor.row + head * tensor.head), tensor.row * size, width * size,
          end - first, pace};
}

/// What happens every few blocks of a product, and otherwise has no time of its own.
struct Pulse {
  Progress progress;
  RowsAhead ahead[4] = {};

  void beat() {
    progress.call(progress.context);
    for (RowsAhead& rows : ahead) rows.fetch();
  }
};

struct Left {
  const float* data;
  std::int64_t row, column;  ///< Strides.
};

/// c[j][lane] = (Add ? c : 0) + sum over t < depth of a[j][t] * b[t][lane] for J rows and N vectors of lanes; depth > 0.
template <int J, int N, bool Add>
[[gnu::always_inline]] inline void multiply_block(Left a, const float* b, std::int64_t b_stride, std::int64_t depth, float* c,
                                                  std::int64_t c_stride) {
  Vec sum[J][N];
#pragma GCC unroll 8
  for (int j = 0; j < J; ++j) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) sum[j][n] = Vec{};
  }
  // Tested at the end: with a way around the loop the compiler moves every sum through the stack.
  do {
    Vec right[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) right[n] = load(b + n * kLanes);
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
      const float left = a.data[j * a.row];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sum[j][n] += left * right[n];
    }
    a.data += a.column;
    b += b_stride;
  } while (--depth > 0);
  // What c held is added here: no multiply-add has to wait for it to come from the second-level cache.
#pragma GCC unroll 8
  for (int j = 0; j < J; ++j) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      float* to = c + j * c_stride + n * kLanes;
      store(to, Add ? load(to) + sum[j][n] : sum[j][n]);
    }
  }
}

/// Beats after every few blocks: a block takes about 3000 cycles for a depth of 256.
template <int N, bool Add>
void multiply_rows(Left a, const float* b, std::int64_t b_stride, std::int64_t depth, std::int64_t rows, float* c, std::int64_t c_stride,
                   Pulse& pulse) {
  constexpr std::int64_t kBlocksPerCall = 4;
  for (std::int64_t block = 1; rows > 0; ++block) {
    std::int64_t count = kMaxRows;
    // Eight rows are two blocks of four: six and two would leave the last with too few sums to hide the latency.
    if (rows > kMaxRows + 2 || rows == kMaxRows) {
      multiply_block<kMaxRows, N, Add>(a, b, b_stride, depth, c, c_stride);
    } else if (rows >= 4) {
      multiply_block<4, N, Add>(a, b, b_stride, depth, c, c_stride);
      count = 4;
    } else if (rows >= 2) {
      multiply_block<2, N, Add>(a, b, b_stride, depth, c, c_stride);
      count = 2;
    } else {
      multiply_block<1, N, Add>(a, b, b_stride, depth, c, c_stride);
      count = 1;
    }
    a.data += count * a.row;
    c += count * c_stride;
    rows -= count;
    if (block % kBlocksPerCall == 0) pulse.beat();
  }
}

/// The same for any number of rows and any multiple of kLanes lanes.
template <bool Add>
void multiply(Left a, const float* b, std::int64_t b_stride, std::int64_t depth, std::int64_t rows, std::int64_t lanes, float* c,
              std::int64_t c_stride, Pulse& pulse) {
  constexpr std::int64_t kWide = kMaxVectors * kLanes;
  for (; lanes >= kWide; lanes -= kWide, b += kWide, c += kWide) {
    multiply_rows<kMaxVectors, Add>(a, b, b_stride, depth, rows, c, c_stride, pulse);
  }
  if (lanes == 3 * kLanes) return multiply_rows<3, Add>(a, b, b_stride, depth, rows, c, c_stride, pulse);
  if (lanes == 2 * kLanes) return multiply_rows<2, Add>(a, b, b_stride, depth, rows, c, c_stride, pulse);
  if (lanes == kLanes) multiply_rows<1, Add>(a, b, b_stride, depth, rows, c, c_stride, pulse);
}

}  // namespace
}  // namespace periplus::kernels::cpu
