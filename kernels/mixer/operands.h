#pragma once
// What the parts of mixers share: sums over tokens that do not depend on threads.

#include <cstdint>
#include <vector>

#include "kernels/operands.h"
#include "kernels/rows.h"

namespace periplus::kernels {

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
