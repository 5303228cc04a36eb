#pragma once

#include <cstdint>
#include <optional>

#include "parallel/train/config.h"
#include "parallel/train/model/mixer.h"
#include "parallel/train/model/parameters.h"
#include "runtime/device.h"
#include "runtime/tensor.h"

namespace periplus::train {

/// Temporaries of one tile of rows that all layers share. gate and up are left out where layers keep them.
class LayerScratch {
 public:
  LayerScratch() = default;
  LayerScratch(const ModelConfig& model, DType dtype, std::int64_t rows, bool keeps_hidden, const Memory& memory);

  // [tile, hidden]; rstd [tile], sum in the accumulator type
  Tensor residual, normed, rstd, sum, narrow;
  // [tile, ffn]
  Tensor gate, up, product, dproduct;
};

/// [rows, ffn]: what a layer's feed-forward part keeps for backward.
struct LayerHidden {
  TensorView gate, up;
};

/// A layer of one step: its mixer, and which of the mixer's layers it is.
struct LayerContext {
  const LayerScratch& scratch;
  std::optional<LayerHidden> hidden;  ///< Nothing: backward computes it again.
  Mixer& mixer;
  std::size_t slot;
  double norm_epsilon;
  bool has_backward;  ///< After this forward: else nothing need be kept.
  StreamView stream;
};

/// x_next = y + mlp(norm(y)), y = x + mixer(norm(x)), by tiles of rows. x [rows, hidden]; what mixing made of it stays in the mixer.
/// Collective.
void layer_forward(const LayerContext& context, const LayerWeights& weights, ConstTensorView x, TensorView x_next);

/// dx: in, the gradient of x_next; out, that of x. Weight gradients accumulate. What the mixer communicated is not communicated
/// again; everything local is, from x, but for hidden values that were kept (algorithms.md 10.7). Collective.
void layer_backward(const LayerContext& context, const LayerWeights& weights, const LayerGradients& gradients, ConstTensorView x,
                    TensorView dx);

}  // namespace periplus::train
