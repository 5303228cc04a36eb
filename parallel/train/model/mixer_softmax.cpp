// Softmax attention with rotary positions, over the whole document or a window.
#include <cmath>
#include <optional>

#include "kernels/transformer.h"
#include "parallel/attention.h"
#include "parallel/train/model/mixer.h"
#include "parallel/train/model/rotary.h"

namespace periplus::train {
namespace {

using kernels::Update;

enum Role : std::size_t { kQ, kK, kV };

class SoftmaxMixer : public Mixer {
 public:
  SoftmaxMixer(const MixerSetup& setup, char letter, const MaskSpec& mask)
      : model_(setup.model),
        rotary_(rotary_of(setup.model)),
        dtype_(setup.dtype),
        memory_(setup.memory),
        letter_(letter),
        mask_(mask),
        saved_(setup.layers.size()) {}

  void plan(const Batch& batch, const Planning& planning) override {
    attention_.reset();
    rows_ = std::ssize(batch.tokens);
    positions_ = batch.positions;
    const AttentionProblem problem = {.layout = batch.layout,
                                      .mask = Mask(mask_, batch.layout.cu_seqlens()),
                                      .q_heads = static_cast<int>(model_.heads),
                                      .kv_heads = static_cast<int>(model_.kv_heads),
                                      .head_size = static_cast<int>(model_.head_size),
                                      .value_size = static_cast<int>(model_.head_size),
                                      .dtype = dtype_,
                                      .scale = rotary_.score_factor / std::sqrt(static_cast<double>(model_.head_size))};
    const AttentionOptions options = planning.attention ? planning.attention(letter_, problem) : AttentionOptions();
    attention_.emplace(problem, options, planning.communicator, memory_, planning.tracer, planning.stream);
    reserve();
  }

  /// 4 + 10 per head, channel and allowed pair.
  double flops(const Batch& batch) const override {
    const auto area = static_cast<double>(Mask(mask_, batch.layout.cu_seqlens()).area());
    return 14.0 * static_cast<double>(model_.heads * model_.head_size) * area;
  }
  double exposed_seconds() const override { return attention_->statistics().exposed_seconds; }

  void project(const MixerLayer& layer, const Tile& tile, ConstTensorView normed) override {
    train::project(normed, layer.weights[kQ], tile.of(q_), layer.stream);
    train::project(normed, layer.weights[kK], tile.of(k_), layer.stream);
    train::project(normed, layer.weights[kV], tile.of(v_), layer.stream);
  }

  void forward(const MixerLayer& layer) override { attention_->forward(rotated_inputs(layer.stream), outputs(layer)); }

  ConstTensorView output(const MixerLayer& layer, const Tile& tile) override { return tile.of(saved_[layer.slot].out); }
  TensorView doutput(const Tile& tile) override { return tile.of(dout_); }
  void output_backward(const MixerLayer&, const Tile&) override {}

  void backward(const MixerLayer& layer) override {
    const AttentionInputs inputs = rotated_inputs(layer.stream);
    const TensorView dq = heads(dq_), dk = heads(dk_), dv = heads(dv_);
    attention_->backward(inputs, outputs(layer), {.dout = heads(dout_)}, {dq, dk, dv});
    rotate(dq, kernels::RopeDirection::backward, layer.stream);
    rotate(dk, kernels::RopeDirection::backward, layer.stream);
  }

  void project_backward(const MixerLayer& layer, const Tile& tile, ConstTensorView normed, TensorView sum) override {
    const std::array gradients = {tile.of(dq_), tile.of(dk_), tile.of(dv_)};
    for (const std::size_t role : {kQ, kK, kV}) {
      add_weight_gradient(gradients[role], normed, layer.gradients[role], layer.stream);
      project_back(gradients[role], layer.weights[role], sum, role == kQ ? Update::overwrite : Update::accumulate, layer.stream);
    }
  }

 private:
  struct Saved {
    Tensor out;  // [rows, heads * head_size]
    Tensor lse;  // [rows, heads, 1], accumulator type
  };

  void reserve() {
    if (rows_ <= capacity_) return;
    // Old tensors go first: two generations at once would double the peak.
    for (Saved& saved : saved_) saved = {};
    for (Tensor* tensor : {&q_, &k_, &v_, &dout_, &dq_, &dk_, &dv_}) *tensor = Tensor();
    const Extents queries = {rows_, model_.heads * model_.head_size}, keys = {rows_, model_.kv_heads * model_.head_size};
    for (Tensor* tensor : {&q_, &dout_, &dq_}) *tensor = Tensor(queries, dtype_, memory_);
    for (Tensor* tensor : {&k_, &v_, &dk_, &dv_}) *tensor = Tensor(keys, dtype_, memory_);
    for (Saved& saved : saved_) {
      saved = {Tensor(queries, dtype_, memory_), Tensor({rows_, model_.heads, 1}, accumulator_of(dtype_), memory_)};
    }
    capacity_ = rows_;
  }

  TensorView heads(const Tensor& projected) const {
    const std::int64_t size = model_.head_size;
    return heads_of(top(projected, rows_), 0, projected.shape()[1] / size, size);
  }
  AttentionOutputs outputs(const MixerLayer& layer) const {
    const Saved& saved = saved_[layer.slot];
    return {heads(saved.out), top(saved.lse, rows_)};
  }
  void rotate(TensorView x, kernels::RopeDirection direction, StreamView stream) const {
    kernels::rope(x, positions_, rotary_.frequencies, kernels::RopeStyle::half, direction, stream);
  }
  /// Forward and backward both start with what project has just made.
  AttentionInputs rotated_inputs(StreamView stream) const {
    rotate(heads(q_), kernels::RopeDirection::forward, stream);
    rotate(heads(k_), kernels::RopeDirection::forward, stream);
    return {heads(q_), heads(k_), heads(v_)};
  }

  const ModelConfig& model_;
  Rotary rotary_;
  DType dtype_;
  Memory memory_;
  char letter_;
  MaskSpec mask_;
  std::optional<DistributedAttention> attention_;
  std::int64_t rows_ = 0, capacity_ = -1;
  std::span<const std::int64_t> positions_;
  // [rows, heads * head_size] or [rows, kv_heads * head_size]
  Tensor q_, k_, v_, dout_, dq_, dk_, dv_;
  std::vector<Saved> saved_;
};

}  // namespace

std::vector<ParameterShape> softmax_parameters(const ModelConfig& model) {
  const std::int64_t queries = model.heads * model.head_size, keys = model.kv_heads * model.head_size;
  return {{"self_attn.q_proj.weight", {queries, model.hidden}, Start::projection},
          {"self_attn.k_proj.weight", {keys, model.hidden}, Start::projection},
          {"self_attn.v_proj.weight", {keys, model.hidden}, Start::projection},
          {"self_attn.o_proj.weight", {model.hidden, queries}, Start::residual}};
}

std::unique_ptr<Mixer> make_softmax_mixer(const MixerSetup& setup) { return std::make_unique<SoftmaxMixer>(setup, 'S', MaskSpec{}); }

std::unique_ptr<Mixer> make_window_mixer(const MixerSetup& setup) {
  return std::make_unique<SoftmaxMixer>(setup, 'W', MaskSpec{.causal = true, .window_left = setup.model.window});
}

}  // namespace periplus::train
