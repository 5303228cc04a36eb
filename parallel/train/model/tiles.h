// Tiles of rows, and the products of a projection on them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/matmul.h"
#include "kernels/transfer.h"
#include "runtime/tensor.h"

namespace periplus::train {

/// Work between exchanges goes by tiles of rows, so that temporaries do not grow with the rows of a rank. A GPU needs more rows at a
/// time to be busy, and has memory for them.
inline std::int64_t tile_rows(Device device) { return device.kind == DeviceKind::cpu ? 1024 : 8192; }

struct Tile {
  std::int64_t begin;
  std::int64_t rows;
  /// The tile's rows of a whole-shard tensor.
  template <class View>
  View of(const View& whole) const {
    return whole.slice(0, begin, rows);
  }
  TensorView of(const Tensor& whole) const { return of(whole.view()); }
  /// As many rows of a temporary.
  TensorView top(const Tensor& scratch) const { return scratch.view().slice(0, 0, rows); }
};

template <class Body>
void for_each_tile(std::int64_t rows, Device device, const Body& body) {
  const std::int64_t most = tile_rows(device);
  for (std::int64_t begin = 0; begin < rows; begin += most) body(Tile{begin, std::min(most, rows - begin)});
}

/// The first rows of a tensor that has room for more.
inline TensorView top(const Tensor& tensor, std::int64_t rows) { return tensor.view().slice(0, 0, rows); }

/// Columns [begin, begin + heads * width) of a matrix as [rows, heads, width].
template <class View>
View heads_of(const View& matrix, std::int64_t begin, std::int64_t heads, std::int64_t width) {
  const View columns = matrix.slice(1, begin, heads * width);
  return View(columns.bytes(), columns.dtype(), {columns.size(0), heads, width}, {columns.stride(0), width, 1});
}

/// A dense matrix as kernels/transfer.h takes it.
inline TensorView as_rows(TensorView matrix) { return matrix.reshape({matrix.size(0), 1, matrix.size(1)}); }
/// A dense tensor as one row.
template <class View>
View as_row(const View& tensor) {
  return tensor.reshape({1, 1, tensor.elements()});
}

/// y = x W^T for W [out, in].
inline void project(ConstTensorView x, ConstTensorView weight, TensorView y, StreamView stream) {
  kernels::matmul(x, weight, y, {.transpose_b = true}, stream);
}
/// y += b, for b [out].
inline void add_bias(ConstTensorView bias, TensorView y, StreamView stream) {
  const std::int64_t out = bias.size(0);
  kernels::add(ConstTensorView(bias.bytes(), bias.dtype(), {y.size(0), 1, out}, {0, out, 1}), as_rows(y), stream);
}
/// dx (+)= dy W.
inline void project_back(ConstTensorView dy, ConstTensorView weight, TensorView dx, kernels::Update update, StreamView stream) {
  kernels::matmul(dy, weight, dx, {.update = update}, stream);
}
/// dW += dy^T x.
inline void add_weight_gradient(ConstTensorView dy, ConstTensorView x, TensorView dweight, StreamView stream) {
  kernels::matmul(dy, x, dweight, {.transpose_a = true, .update = kernels::Update::accumulate}, stream);
}

}  // namespace periplus::train
