// One transformer layer, forward and backward by hand.
#include "parallel/train/layer.h"

#include <algorithm>

#include "kernels/matmul.h"
#include "kernels/transformer.h"

namespace periplus::train {
namespace {

using kernels::Update;

struct Tile {
  std::int64_t begin;
  std::int64_t rows;
  /// The tile's rows of a whole-shard tensor.
  template <class View>
  View of(const View& whole) const {
    return whole.slice(0, begin, rows);
  }
  /// As many rows of a temporary.
  TensorView top(const Tensor& scratch) const { return scratch.view().slice(0, 0, rows); }
};

template <class Body>
void for_each_tile(std::int64_t rows, const Body& body) {
  for (std::int64_t begin = 0; begin < rows; begin += LayerScratch::kTileRows) {
    body(Tile{begin, std::min(LayerScratch::kTileRows, rows - begin)});
  }
}

/// y = x W^T for W [out, in].
void project(ConstTensorView x, ConstTensorView weight, TensorView y, StreamView stream) {
  kernels::matmul(x, weight, y, {.transpose_b = true}, stream);
}
/// dx (+)= dy W.
void project_back(ConstTensorView dy, ConstTensorView weight, TensorView dx, Update update, StreamView stream) {
  kernels::matmul(dy, weight, dx, {.update = update}, stream);
}
/// dW += dy^T x.
void add_weight_gradient(ConstTensorView dy, ConstTensorView x, TensorView dweight, StreamView stream) {
  kernels::matmul(dy, x, dweight, {.transpose_a = true, .update = Update::accumulate}, stream);
}

/// A sum of products is kept in the accumulator type until it is complete; this is it in the storage type.
ConstTensorView stored(const LayerContext& on, const Tile& tile) {
  const TensorView sum = tile.top(on.scratch.sum);
  if (on.scratch.narrow.empty()) return sum;
  const TensorView narrow = tile.top(on.scratch.narrow);
  copy(sum, narrow);
  return narrow;
}

TensorView heads_of(const Tensor& projected, std::int64_t rows, std::int64_t head_size) {
  const TensorView used = projected.view().slice(0, 0, rows);
  return used.reshape({rows, used.size(1) / head_size, head_size});
}

struct Heads {
  TensorView q, k, v;
};
Heads heads(const LayerContext& on, std::int64_t rows) {
  const std::int64_t size = on.model.head_size;
  return {heads_of(on.scratch.q, rows, size), heads_of(on.scratch.k, rows, size), heads_of(on.scratch.v, rows, size)};
}

void rotate(const LayerContext& on, TensorView x, kernels::RopeDirection direction) {
  kernels::rope(x, on.positions, on.model.rope_theta, kernels::RopeStyle::half, direction, on.stream);
}

/// q, k, v of the layer's input, rotated. Forward and backward both start with it.
Heads queries_keys_values(const LayerContext& on, const LayerWeights& weights, ConstTensorView x) {
  const LayerScratch& scratch = on.scratch;
  for_each_tile(x.size(0), [&](const Tile& tile) {
    const TensorView normed = tile.top(scratch.normed);
    kernels::rms_norm(tile.of(x), weights.input_norm, kNormEpsilon, normed, tile.top(scratch.rstd), on.stream);
    project(normed, weights.q, tile.of(scratch.q.view()), on.stream);
    project(normed, weights.k, tile.of(scratch.k.view()), on.stream);
    project(normed, weights.v, tile.of(scratch.v.view()), on.stream);
  });
  const Heads result = heads(on, x.size(0));
  rotate(on, result.q, kernels::RopeDirection::forward);
  rotate(on, result.k, kernels::RopeDirection::forward);
  return result;
}

AttentionOutputs attention_outputs(const LayerContext& on, const LayerSaved& saved) {
  const std::int64_t rows = saved.x.size(0);
  return {saved.attended.reshape({rows, on.model.heads, on.model.head_size}), saved.lse};
}

/// residual = x + attended W_o^T, normed and rstd of it, gate, up and their product: what the feed-forward part needs in
/// both directions.
void feed_forward_hidden(const LayerContext& on, const LayerWeights& weights, const LayerSaved& saved, const Tile& tile) {
  const LayerScratch& scratch = on.scratch;
  const TensorView residual = tile.top(scratch.residual), normed = tile.top(scratch.normed);
  const TensorView gate = tile.top(scratch.gate), up = tile.top(scratch.up);
  project(tile.of(saved.attended), weights.o, residual, on.stream);
  kernels::add_in_place(tile.of(saved.x), residual, on.stream);
  kernels::rms_norm(residual, weights.post_norm, kNormEpsilon, normed, tile.top(scratch.rstd), on.stream);
  project(normed, weights.gate, gate, on.stream);
  project(normed, weights.up, up, on.stream);
  kernels::swiglu(gate, up, tile.top(scratch.product), on.stream);
}

/// dx: in, the gradient of the layer's output; out, that of y = x + attended W_o^T. Writes dattended.
void feed_forward_backward(const LayerContext& on, const LayerWeights& weights, const LayerGradients& gradients, const LayerSaved& saved,
                           const Tile& tile, TensorView dx) {
  const LayerScratch& scratch = on.scratch;
  feed_forward_hidden(on, weights, saved, tile);
  const TensorView gate = tile.top(scratch.gate), up = tile.top(scratch.up), dproduct = tile.top(scratch.dproduct);
  const TensorView normed = tile.top(scratch.normed), sum = tile.top(scratch.sum);
  add_weight_gradient(dx, tile.top(scratch.product), gradients.down, on.stream);
  project_back(dx, weights.down, dproduct, Update::overwrite, on.stream);
  kernels::swiglu_backward(dproduct, gate, up, gate, up, on.stream);  // gate and up become their own gradients
  add_weight_gradient(gate, normed, gradients.gate, on.stream);
  add_weight_gradient(up, normed, gradients.up, on.stream);
  project_back(gate, weights.gate, sum, Update::overwrite, on.stream);
  project_back(up, weights.up, sum, Update::accumulate, on.stream);
  kernels::rms_norm_backward(stored(on, tile), tile.top(scratch.residual), weights.post_norm, tile.top(scratch.rstd), dx,
                             Update::accumulate, gradients.post_norm, on.stream);
  add_weight_gradient(dx, tile.of(saved.attended), gradients.o, on.stream);
  project_back(dx, weights.o, tile.of(scratch.dattended.view()), Update::overwrite, on.stream);
}

void projections_backward(const LayerContext& on, const LayerWeights& weights, const LayerGradients& gradients, const LayerSaved& saved,
                          const Tile& tile, TensorView dx) {
  const LayerScratch& scratch = on.scratch;
  const TensorView normed = tile.top(scratch.normed), rstd = tile.top(scratch.rstd), sum = tile.top(scratch.sum);
  const TensorView dq = tile.of(scratch.dq.view()), dk = tile.of(scratch.dk.view()), dv = tile.of(scratch.dv.view());
  kernels::rms_norm(tile.of(saved.x), weights.input_norm, kNormEpsilon, normed, rstd, on.stream);
  add_weight_gradient(dq, normed, gradients.q, on.stream);
  add_weight_gradient(dk, normed, gradients.k, on.stream);
  add_weight_gradient(dv, normed, gradients.v, on.stream);
  project_back(dq, weights.q, sum, Update::overwrite, on.stream);
  project_back(dk, weights.k, sum, Update::accumulate, on.stream);
  project_back(dv, weights.v, sum, Update::accumulate, on.stream);
  kernels::rms_norm_backward(stored(on, tile), tile.of(saved.x), weights.input_norm, rstd, dx, Update::accumulate, gradients.input_norm,
                             on.stream);
}

}  // namespace

LayerScratch::LayerScratch(const ModelConfig& model, DType dtype, std::int64_t rows, const Memory& memory) {
  const std::int64_t tile = std::min(rows, kTileRows);
  const DType accumulator = accumulator_of(dtype);
  const Extents queries = {rows, model.heads * model.head_size}, keys = {rows, model.kv_heads * model.head_size};
  for (Tensor* tensor : {&q, &dattended, &dq}) *tensor = Tensor(queries, dtype, memory);
  for (Tensor* tensor : {&k, &v, &dk, &dv}) *tensor = Tensor(keys, dtype, memory);
  for (Tensor* tensor : {&residual, &normed}) *tensor = Tensor({tile, model.hidden}, dtype, memory);
  for (Tensor* tensor : {&gate, &up, &product, &dproduct}) *tensor = Tensor({tile, model.ffn}, dtype, memory);
  rstd = Tensor({tile}, accumulator, memory);
  sum = Tensor({tile, model.hidden}, accumulator, memory);
  if (accumulator != dtype) narrow = Tensor({tile, model.hidden}, dtype, memory);
}

void layer_forward(const LayerContext& on, const LayerWeights& weights, const LayerSaved& saved, TensorView x_next) {
  const Heads in = queries_keys_values(on, weights, saved.x);
  on.attention.forward({in.q, in.k, in.v}, attention_outputs(on, saved));
  for_each_tile(saved.x.size(0), [&](const Tile& tile) {
    feed_forward_hidden(on, weights, saved, tile);
    project(tile.top(on.scratch.product), weights.down, tile.of(x_next), on.stream);
    kernels::add_in_place(tile.top(on.scratch.residual), tile.of(x_next), on.stream);
  });
}

void layer_backward(const LayerContext& on, const LayerWeights& weights, const LayerGradients& gradients, const LayerSaved& saved,
                    TensorView dx) {
  const std::int64_t rows = saved.x.size(0);
  for_each_tile(rows, [&](const Tile& tile) { feed_forward_backward(on, weights, gradients, saved, tile, tile.of(dx)); });
  const Heads in = queries_keys_values(on, weights, saved.x);
  const std::int64_t size = on.model.head_size;
  const TensorView dq = heads_of(on.scratch.dq, rows, size), dk = heads_of(on.scratch.dk, rows, size),
                   dv = heads_of(on.scratch.dv, rows, size);
  const AttentionOutputGradients incoming = {.dout = heads_of(on.scratch.dattended, rows, size)};
  on.attention.backward({in.q, in.k, in.v}, attention_outputs(on, saved), incoming, {dq, dk, dv});
  rotate(on, dq, kernels::RopeDirection::backward);
  rotate(on, dk, kernels::RopeDirection::backward);
  for_each_tile(rows, [&](const Tile& tile) { projections_backward(on, weights, gradients, saved, tile, tile.of(dx)); });
}

}  // namespace periplus::train
