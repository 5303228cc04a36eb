#pragma once

#include <cstdint>
#include <vector>

#include "parallel/attention.h"
#include "parallel/train/batch.h"
#include "parallel/train/config.h"
#include "parallel/train/layer.h"
#include "parallel/train/parameters.h"
#include "runtime/tensor.h"

namespace periplus::train {

/// A Llama-shaped language model on one rank of a context-parallel group: all weights, this rank's rows of the activations.
class Model {
 public:
  Model(const ModelConfig& config, DType dtype, const Memory& memory);

  const ModelConfig& config() const noexcept { return config_; }
  const ParameterTable& parameters() const noexcept { return parameters_; }
  /// All weights, flat, in the storage type. Uninitialised until somebody fills them.
  TensorView weights() const { return weights_; }
  /// All gradients, flat, in the accumulator type: this rank's part of the sum over ranks.
  TensorView gradients() const { return gradients_; }
  void zero_gradients() { fill_zero(gradients_); }

  /// What DistributedAttention must be made from for this batch; one object serves all layers.
  AttentionProblem attention_problem(const Batch& batch) const;

  /// Sum of the losses (nats) of this rank's labels. Collective.
  double loss(const Batch& batch, DistributedAttention& attention, StreamView stream);
  /// The same, and adds to gradients() those of the mean loss over the labels of all ranks: summed over ranks, never
  /// averaged, they are its gradient. Collective.
  double loss_and_gradients(const Batch& batch, DistributedAttention& attention, StreamView stream);

  /// Forward and backward operations of a row, all ranks, recomputation not counted: 6 per matrix weight and token,
  /// 4 + 10 per head, channel and allowed pair.
  double flops(const Batch& batch) const;

 private:
  struct Saved {
    Tensor x, attended, lse;
  };
  void reserve(std::int64_t rows);
  LayerContext context(const Batch& batch, DistributedAttention& attention, StreamView stream) const;
  LayerSaved saved(std::int64_t layer, std::int64_t rows) const;
  void forward_layers(const Batch& batch, DistributedAttention& attention, StreamView stream);
  double output_loss(const Batch& batch, TensorView dnormed, TensorView dhead, StreamView stream);

  ModelConfig config_;
  DType dtype_;
  Memory memory_;
  ParameterTable parameters_;
  Tensor weights_;
  Tensor gradients_;
  std::int64_t capacity_ = -1;  // rows the activations below have room for; kept from step to step
  LayerScratch scratch_;
  std::vector<Saved> saved_;
  Tensor output_, normed_, rstd_, dnormed_, dx_;
};

}  // namespace periplus::train
