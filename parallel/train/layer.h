#pragma once

#include <cstdint>
#include <span>

#include "parallel/attention.h"
#include "parallel/train/config.h"
#include "parallel/train/parameters.h"
#include "runtime/device.h"
#include "runtime/tensor.h"

namespace periplus::train {

/// What a layer's forward leaves for its backward. The attention result is kept so that the distributed pass never runs
/// twice; everything else is computed again from x (algorithms.md 10.7).
struct LayerSaved {
  TensorView x;         ///< [rows, hidden], the layer's input
  TensorView attended;  ///< [rows, heads * head_size]
  TensorView lse;       ///< [rows, heads, 1], accumulator type
};

/// Temporaries that all layers share. Attention needs whole-shard tensors; the rest works on tiles of rows, so it does
/// not grow with rows x ffn.
class LayerScratch {
 public:
  static constexpr std::int64_t kTileRows = 1024;

  LayerScratch() = default;
  LayerScratch(const ModelConfig& model, DType dtype, std::int64_t rows, const Memory& memory);

  // [rows, heads * head_size] or [rows, kv_heads * head_size]
  Tensor q, k, v, dattended, dq, dk, dv;
  // [tile, hidden]; rstd [tile], sum in the accumulator type
  Tensor residual, normed, rstd, sum, narrow;
  // [tile, ffn]
  Tensor gate, up, product, dproduct;
};

/// What the layers of one step have in common.
struct LayerContext {
  const ModelConfig& model;
  const LayerScratch& scratch;
  std::span<const std::int64_t> positions;
  DistributedAttention& attention;
  StreamView stream;
};

inline constexpr double kNormEpsilon = 1e-5;

/// x_next = y + mlp(norm(y)), y = x + mixer(norm(x)); fills saved.attended and saved.lse. Collective.
void layer_forward(const LayerContext& context, const LayerWeights& weights, const LayerSaved& saved, TensorView x_next);

/// dx: in, the gradient of x_next; out, that of x. Weight gradients accumulate. Collective.
void layer_backward(const LayerContext& context, const LayerWeights& weights, const LayerGradients& gradients, const LayerSaved& saved,
                    TensorView dx);

}  // namespace periplus::train
