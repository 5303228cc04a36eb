// One layer, forward and backward by hand: norm, mixer, norm, feed-forward.
#include "parallel/train/model/layer.h"

#include <algorithm>

#include "kernels/transfer.h"
#include "kernels/transformer.h"

namespace periplus::train {
namespace {

using kernels::Update;

/// A sum of products is kept in the accumulator type until it is complete; this is it in the storage type.
ConstTensorView stored(const LayerContext& on, const Tile& tile) {
  const TensorView sum = tile.top(on.scratch.sum);
  if (on.scratch.narrow.empty()) return sum;
  const TensorView narrow = tile.top(on.scratch.narrow);
  kernels::copy(as_rows(sum), as_rows(narrow), on.stream);
  return narrow;
}

/// What the mixer makes of the layer's input by itself. Forward and backward both start with it.
void project_input(const LayerContext& on, const LayerWeights& weights, const MixerLayer& mixing, ConstTensorView x) {
  for_each_tile(x.size(0), on.stream.device(), [&](const Tile& tile) {
    const TensorView normed = tile.top(on.scratch.normed);
    kernels::rms_norm(tile.of(x), weights.input_norm, on.norm_epsilon, normed, tile.top(on.scratch.rstd), on.stream);
    on.mixer.project(mixing, tile, normed);
  });
}

/// [tile, ffn]: before they are multiplied with each other.
struct HiddenTile {
  TensorView gate, up;
};
HiddenTile hidden_of(const LayerContext& on, const Tile& tile) {
  if (!on.hidden) return {tile.top(on.scratch.gate), tile.top(on.scratch.up)};
  return {tile.of(on.hidden->gate), tile.of(on.hidden->up)};
}

/// residual = x + mixed W_o^T, normed and rstd of it, gate, up and their product: what the feed-forward part needs in
/// both directions.
void feed_forward_hidden(const LayerContext& on, const LayerWeights& weights, ConstTensorView mixed, ConstTensorView x, const Tile& tile,
                         Pass pass) {
  const LayerScratch& scratch = on.scratch;
  const TensorView residual = tile.top(scratch.residual), normed = tile.top(scratch.normed);
  const auto [gate, up] = hidden_of(on, tile);
  project(mixed, weights.o, residual, on.stream);
  kernels::add_in_place(tile.of(x), residual, on.stream);
  kernels::rms_norm(residual, weights.post_norm, on.norm_epsilon, normed, tile.top(scratch.rstd), on.stream);
  if (pass == Pass::forward || !on.hidden) {
    project(normed, weights.gate, gate, on.stream);
    project(normed, weights.up, up, on.stream);
  }
  kernels::swiglu(gate, up, tile.top(scratch.product), on.stream);
}

/// dx: in, the gradient of the layer's output; out, that of y = x + mixed W_o^T.
void feed_forward_backward(const LayerContext& on, const LayerWeights& weights, const LayerGradients& gradients, const Tile& tile,
                           TensorView dx) {
  const LayerScratch& scratch = on.scratch;
  const auto [gate, up] = hidden_of(on, tile);
  const TensorView dproduct = tile.top(scratch.dproduct), normed = tile.top(scratch.normed), sum = tile.top(scratch.sum);
  add_weight_gradient(dx, tile.top(scratch.product), gradients.down, on.stream);
  project_back(dx, weights.down, dproduct, Update::overwrite, on.stream);
  kernels::swiglu_backward(dproduct, gate, up, gate, up, on.stream);  // gate and up become their own gradients
  add_weight_gradient(gate, normed, gradients.gate, on.stream);
  add_weight_gradient(up, normed, gradients.up, on.stream);
  project_back(gate, weights.gate, sum, Update::overwrite, on.stream);
  project_back(up, weights.up, sum, Update::accumulate, on.stream);
  kernels::rms_norm_backward(stored(on, tile), tile.top(scratch.residual), weights.post_norm, tile.top(scratch.rstd), dx,
                             Update::accumulate, gradients.post_norm, on.stream);
}

}  // namespace

LayerScratch::LayerScratch(const ModelConfig& model, DType dtype, std::int64_t rows, bool keeps_hidden, const Memory& memory) {
  const std::int64_t tile = std::min(rows, tile_rows(memory.device()));
  const DType accumulator = accumulator_of(dtype);
  for (Tensor* tensor : {&residual, &normed}) *tensor = Tensor({tile, model.hidden}, dtype, memory);
  for (Tensor* tensor : {&product, &dproduct}) *tensor = Tensor({tile, model.ffn}, dtype, memory);
  if (!keeps_hidden) {
    for (Tensor* tensor : {&gate, &up}) *tensor = Tensor({tile, model.ffn}, dtype, memory);
  }
  rstd = Tensor({tile}, accumulator, memory);
  sum = Tensor({tile, model.hidden}, accumulator, memory);
  if (accumulator != dtype) narrow = Tensor({tile, model.hidden}, dtype, memory);
}

void layer_forward(const LayerContext& on, const LayerWeights& weights, ConstTensorView x, TensorView x_next) {
  const MixerLayer mixing{.slot = on.slot, .weights = weights.mixer, .stream = on.stream};
  project_input(on, weights, mixing, x);
  on.mixer.kept().begin_write(on.slot, on.stream);
  on.mixer.forward(mixing);
  on.mixer.kept().end_write(on.slot, on.stream, on.has_backward);
  for_each_tile(x.size(0), on.stream.device(), [&](const Tile& tile) {
    feed_forward_hidden(on, weights, on.mixer.output(mixing, tile), x, tile, Pass::forward);
    project(tile.top(on.scratch.product), weights.down, tile.of(x_next), on.stream);
    kernels::add_in_place(tile.top(on.scratch.residual), tile.of(x_next), on.stream);
  });
}

void layer_backward(const LayerContext& on, const LayerWeights& weights, const LayerGradients& gradients, ConstTensorView x,
                    TensorView dx) {
  const MixerLayer mixing{.slot = on.slot, .weights = weights.mixer, .gradients = gradients.mixer, .stream = on.stream};
  on.mixer.kept().begin_read(on.slot, on.stream);
  project_input(on, weights, mixing, x);
  for_each_tile(x.size(0), on.stream.device(), [&](const Tile& tile) {
    const TensorView dy = tile.of(dx);
    const ConstTensorView mixed = on.mixer.output(mixing, tile);
    feed_forward_hidden(on, weights, mixed, x, tile, Pass::backward);
    feed_forward_backward(on, weights, gradients, tile, dy);
    add_weight_gradient(dy, mixed, gradients.o, on.stream);
    project_back(dy, weights.o, on.mixer.doutput(tile), Update::overwrite, on.stream);
    on.mixer.output_backward(mixing, tile);
  });
  on.mixer.backward(mixing);
  for_each_tile(x.size(0), on.stream.device(), [&](const Tile& tile) {
    const TensorView normed = tile.top(on.scratch.normed), rstd = tile.top(on.scratch.rstd);
    kernels::rms_norm(tile.of(x), weights.input_norm, on.norm_epsilon, normed, rstd, on.stream);
    on.mixer.project_backward(mixing, tile, normed, tile.top(on.scratch.sum));
    kernels::rms_norm_backward(stored(on, tile), tile.of(x), weights.input_norm, rstd, tile.of(dx), Update::accumulate,
                               gradients.input_norm, on.stream);
  });
  on.mixer.kept().end_read(on.slot, on.stream);
}

}  // namespace periplus::train
