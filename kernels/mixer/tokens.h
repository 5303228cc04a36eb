#pragma once
// What operations by token and head share: their loop, products, and sums over tokens that do not depend on threads.

#include <cstdint>
#include <vector>

#include "kernels/rows.h"
#include "kernels/transformer/vector_math.h"

namespace periplus::kernels {

constexpr std::int64_t kTokenChunk = 64;

/// Rows [first, first + rows) of [N, heads, width].
struct Tokens {
  std::int64_t rows, heads, width;
  std::int64_t first = 0;
};

/// body(row, head) for each, vectorised inside if body is always_inline.
template <class Body>
void for_each_token(const Tokens& tokens, StreamView stream, const Body& body) {
  for_row_chunks(tokens.rows, kTokenChunk, tokens.heads * tokens.width, stream, [=](std::int64_t begin, std::int64_t end, std::int64_t) {
    with_best_instructions([ =, first = tokens.first + begin, last = tokens.first + end ]() __attribute__((always_inline)) {
      for (std::int64_t row = first; row < last; ++row) {
        for (std::int64_t head = 0; head < tokens.heads; ++head) body(row, head);
      }
    });
  });
}

template <class A, class T, class U>
[[gnu::always_inline]] inline A product(const T* a, const U* b, std::int64_t width) {
  return lane_sum<A>(
      width, [&](std::int64_t i) __attribute__((always_inline)) { return widen(a[i]) * widen(b[i]); });
}

/// Sums over tokens, one row of partial results per chunk of rows, added in the order of chunks.
template <class A>
class ChunkSums {
 public:
  ChunkSums(std::int64_t rows, std::int64_t chunk_rows, std::int64_t width)
      : width_(width), sums_(static_cast<std::size_t>((rows + chunk_rows - 1) / chunk_rows * width)) {}
  A* of(std::int64_t chunk) { return sums_.data() + chunk * width_; }
  void add_to(A* total) const {
    const A* sums = sums_.data();
    for (std::size_t at = 0; at < sums_.size(); at += static_cast<std::size_t>(width_)) {
      for (std::int64_t i = 0; i < width_; ++i) total[i] += sums[at + static_cast<std::size_t>(i)];
    }
  }

 private:
  std::int64_t width_;
  std::vector<A> sums_;
};

}  // namespace periplus::kernels
