#pragma once
// What the parts of mixers share: checks of operands by head, and sums over tokens that do not depend on threads.

#include <cstdint>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include "kernels/attention_problem.h"
#include "kernels/transformer/rows.h"
#include "runtime/error.h"

namespace periplus::kernels {

/// [N,H,D] with contiguous width.
inline void require_heads(std::string_view op, std::string_view name, const ConstTensorView& view, const Extents& shape, DType dtype) {
  if (view.dtype() != dtype || !(view.shape() == shape)) {
    throw InvalidArgument(fmt::format("{}: {} is {} {}; it must be {} {}", op, name, to_string(view.dtype()), to_string(view.shape()),
                                      to_string(dtype), to_string(shape)));
  }
  if (shape[2] > 1 && view.stride(2) != 1) {
    throw InvalidArgument(fmt::format("{}: {} {} has strides {}; its last dimension must be contiguous", op, name, to_string(view.shape()),
                                      to_string(view.strides())));
  }
}

template <class T, class View>
auto strided(const View& view) {
  auto* data = view.template data<T>();
  return Strided<std::remove_pointer_t<decltype(data)>>{data, view.stride(0), view.stride(1)};
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
