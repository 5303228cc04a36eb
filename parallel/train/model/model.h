#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "parallel/train/config.h"
#include "parallel/train/data/batch.h"
#include "parallel/train/model/buffers.h"
#include "parallel/train/model/kept.h"
#include "parallel/train/model/layer.h"
#include "parallel/train/model/mixer.h"
#include "parallel/train/model/parameters.h"
#include "runtime/device_tensor.h"
#include "runtime/tensor.h"

namespace periplus::train {

/// Rows whose logits exist at a time: on a device as many as fit some 256 MiB, so that it is busy.
std::int64_t loss_rows(std::int64_t vocabulary, Device device);

/// What a model keeps. The numbers are the same.
struct ModelStorage {
  bool hidden = false;    ///< Backward finds gate and up of all layers instead of computing them again.
  bool gradients = true;  ///< Of all parameters. Else of the embedding, one layer, and what is behind the layers.
  bool weights = true;    ///< The same.
  bool offload = false;   ///< On a device: what layers keep for backward waits in host memory.
};

/// A Llama-shaped language model, whose layers mix tokens as model.pattern says, on one rank of a context-parallel group: all weights
/// (unless it fetches them), this rank's rows of the activations.
class Model {
 public:
  /// dtype: f64, f32 or bf16. Errors: InvalidArgument, as check(config), and for storage that the device has no use for.
  Model(const ModelConfig& config, DType dtype, const Memory& memory, const ModelStorage& storage = {});
  Model(const Model&) = delete;  // mixers refer to the configuration
  Model& operator=(const Model&) = delete;

  const ModelConfig& config() const noexcept { return config_; }
  const ParameterTable& parameters() const noexcept { return parameters_; }
  /// All weights, flat, in the storage type. Uninitialised until somebody fills them; empty if they are fetched.
  TensorView weights() const { return buffers_.weights(); }
  /// All gradients, flat, in the accumulator type: this rank's part of the sum over ranks. Empty if they are taken.
  TensorView gradients() const { return buffers_.gradients(); }
  void zero_gradients(StreamView stream) { fill_zero(gradients(), stream); }

  /// Plans the distributed operators for a batch, which must live until the next plan: one for each kind of layer. Collective.
  void plan(const Batch& batch, const Planning& planning);
  void plan(Batch&& batch, const Planning& planning) = delete;

  /// Sum of the losses (nats) of this rank's labels of the planned batch. Collective.
  double loss(StreamView stream, const SectionExchange& exchange = {});
  /// The same, and adds to gradients() those of the mean loss over the labels of all ranks: summed over ranks, never
  /// averaged, they are its gradient. Collective.
  double loss_and_gradients(StreamView stream, const SectionExchange& exchange = {});
  /// What a rank does that has no part in a batch of others: it fetches what they fetch, and leaves zeros. Collective.
  void stand_by(StreamView stream, const SectionExchange& exchange);

  /// Forward and backward operations of a row, all ranks, recomputation not counted: 6 per matrix weight and token, and
  /// what the mixers add.
  double flops(const Batch& batch) const;
  /// Host time of the planned operators spent waiting for messages.
  double exposed_seconds() const;

 private:
  /// The mixer of a layer, and which of its layers that is.
  struct Mixing {
    Mixer* mixer;
    std::size_t slot;
  };
  void make_mixers();
  void reserve(std::int64_t rows);
  std::int64_t rows() const;
  LayerContext context(std::int64_t layer, bool has_backward, StreamView stream) const;
  /// [rows, hidden]: input of a layer; behind the last one its output.
  TensorView input(std::int64_t layer) const {
    return top(layer == config_.layers ? output_ : inputs_.tensor(static_cast<std::size_t>(layer), 0), rows());
  }
  void forward_layers(bool has_backward, StreamView stream, const SectionExchange& exchange);
  double output_loss(TensorView dnormed, TensorView dhead, StreamView stream, const SectionExchange& exchange);

  ModelConfig config_;
  DType dtype_;
  Memory memory_;
  bool keeps_hidden_, offload_;
  ParameterTable parameters_;
  ParameterBuffers buffers_;
  std::int64_t capacity_ = -1;                  // rows the activations below have room for; kept from step to step
  std::vector<std::unique_ptr<Mixer>> mixers_;  // one for each kind of layer
  std::vector<Mixing> mixing_;                  // by layer
  const Batch* batch_ = nullptr;                // the planned one
  LayerScratch scratch_;
  Kept inputs_;    // of every layer, [rows, hidden]
  Kept hidden_;    // gate and up of every layer, [rows, ffn], if they are kept
  Tensor output_;  // of the last layer
  Tensor normed_, rstd_, dnormed_, dx_;
};

}  // namespace periplus::train
