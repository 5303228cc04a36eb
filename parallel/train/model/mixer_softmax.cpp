// Softmax attention with rotary positions, over the whole document or a window; heads of q and k may be normalised, and q, k and v biased.
#include <algorithm>
#include <array>
#include <cmath>
#include <optional>

#include "kernels/transformer.h"
#include "parallel/attention.h"
#include "parallel/train/model/mixer.h"
#include "parallel/train/model/rotary.h"
#include "runtime/device_tensor.h"

namespace periplus::train {
namespace {

using kernels::Update;

enum Role : std::size_t { kQ, kK, kV, kQNorm, kKNorm };

class SoftmaxMixer : public Mixer {
 public:
  SoftmaxMixer(const MixerSetup& setup, char letter, const MaskSpec& mask)
      : Mixer(setup, {{{setup.model.heads * setup.model.head_size}, setup.dtype},  // out
                      {{setup.model.heads, 1}, accumulator_of(setup.dtype)}}),     // lse
        model_(setup.model),
        rotary_(rotary_of(setup.model)),
        dtype_(setup.dtype),
        memory_(setup.memory),
        letter_(letter),
        mask_(mask) {
    if (model_.qkv_bias) ones_ = ones(tile_rows(memory_.device()));
  }

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
    const std::array results = {tile.of(model_.qk_norm ? q_norm_.x : q_), tile.of(model_.qk_norm ? k_norm_.x : k_), tile.of(v_)};
    for (const Role role : {kQ, kK, kV}) {
      train::project(normed, layer.weights[role], results[role], layer.stream);
      if (model_.qkv_bias) add_bias(layer.weights[bias_of(role)], results[role], layer.stream);
    }
  }

  void forward(const MixerLayer& layer) override { attention_->forward(inputs(layer), outputs(layer)); }

  ConstTensorView output(const MixerLayer& layer, const Tile& tile) override { return tile.of(kept_.tensor(layer.slot, 0)); }
  TensorView doutput(const Tile& tile) override { return tile.of(dout_); }
  void output_backward(const MixerLayer&, const Tile&) override {}

  void backward(const MixerLayer& layer) override {
    attention_->backward(inputs(layer), outputs(layer), {.dout = heads(dout_)}, {heads(dq_), heads(dk_), heads(dv_)});
    turn_backward(layer, kQNorm, q_norm_, dq_);
    turn_backward(layer, kKNorm, k_norm_, dk_);
  }

  void project_backward(const MixerLayer& layer, const Tile& tile, ConstTensorView normed, TensorView sum) override {
    const std::array gradients = {tile.of(dq_), tile.of(dk_), tile.of(dv_)};
    for (const Role role : {kQ, kK, kV}) {
      add_weight_gradient(gradients[role], normed, layer.gradients[role], layer.stream);
      project_back(gradients[role], layer.weights[role], sum, role == kQ ? Update::overwrite : Update::accumulate, layer.stream);
      if (!model_.qkv_bias) continue;
      // It is the weight of an input that is always 1.
      const TensorView dbias = layer.gradients[bias_of(role)];
      add_weight_gradient(gradients[role], tile.top(ones_), dbias.reshape({dbias.size(0), 1}), layer.stream);
    }
  }

 private:
  /// Of q or k, with qk_norm.
  struct HeadNorm {
    Tensor x;     // [rows, heads * head_size]: what is normalised
    Tensor rstd;  // [rows * heads], accumulator type
  };

  std::size_t bias_of(Role role) const { return (model_.qk_norm ? kKNorm : kV) + 1 + role; }

  /// [rows, 1]
  Tensor ones(std::int64_t rows) const {
    Tensor host({rows, 1}, DType::f32, Memory());
    std::ranges::fill(host.view().span<float>(), 1.0F);
    Tensor stored({rows, 1}, dtype_, Memory());
    copy(host, stored);
    return to_device(stored, memory_);
  }

  void reserve() {
    kept_.resize(rows_);
    if (rows_ <= capacity_) return;
    capacity_ = -1;  // until memory is had
    // Old tensors go first: two generations at once would double the peak.
    for (Tensor* tensor : {&q_, &k_, &v_, &dout_, &dq_, &dk_, &dv_}) *tensor = Tensor();
    for (HeadNorm* norm : {&q_norm_, &k_norm_}) *norm = HeadNorm();
    const Extents queries = {rows_, model_.heads * model_.head_size}, keys = {rows_, model_.kv_heads * model_.head_size};
    for (Tensor* tensor : {&q_, &dout_, &dq_}) *tensor = Tensor(queries, dtype_, memory_);
    for (Tensor* tensor : {&k_, &v_, &dk_, &dv_}) *tensor = Tensor(keys, dtype_, memory_);
    if (model_.qk_norm) {
      q_norm_ = {Tensor(queries, dtype_, memory_), Tensor({rows_ * model_.heads}, accumulator_of(dtype_), memory_)};
      k_norm_ = {Tensor(keys, dtype_, memory_), Tensor({rows_ * model_.kv_heads}, accumulator_of(dtype_), memory_)};
    }
    capacity_ = rows_;
  }

  TensorView heads(const Tensor& projected) const {
    const std::int64_t size = model_.head_size;
    return heads_of(top(projected, rows_), 0, projected.shape()[1] / size, size);
  }
  AttentionOutputs outputs(const MixerLayer& layer) const {
    return {heads(kept_.tensor(layer.slot, 0)), top(kept_.tensor(layer.slot, 1), rows_)};
  }
  void rotate(const Tensor& x, kernels::RopeDirection direction, StreamView stream) const {
    kernels::rope(heads(x), positions_, rotary_.frequencies, kernels::RopeStyle::half, direction, stream);
  }
  /// [rows * heads, head_size]
  TensorView each_head(const Tensor& projected) const {
    return top(projected, rows_).reshape({rows_ * projected.shape()[1] / model_.head_size, model_.head_size});
  }
  void turn(const MixerLayer& layer, Role role, const HeadNorm& norm, const Tensor& x) const {
    if (model_.qk_norm) {
      const TensorView y = each_head(x);
      kernels::rms_norm(each_head(norm.x), layer.weights[role], model_.norm_epsilon, y, top(norm.rstd, y.size(0)), layer.stream);
    }
    rotate(x, kernels::RopeDirection::forward, layer.stream);
  }
  void turn_backward(const MixerLayer& layer, Role role, const HeadNorm& norm, const Tensor& dx) const {
    rotate(dx, kernels::RopeDirection::backward, layer.stream);
    if (!model_.qk_norm) return;
    const TensorView d = each_head(dx);
    kernels::rms_norm_backward(d, each_head(norm.x), layer.weights[role], top(norm.rstd, d.size(0)), d, Update::overwrite,
                               layer.gradients[role], layer.stream);
  }
  /// Forward and backward both start with what project has just made.
  AttentionInputs inputs(const MixerLayer& layer) const {
    turn(layer, kQNorm, q_norm_, q_);
    turn(layer, kKNorm, k_norm_, k_);
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
  HeadNorm q_norm_, k_norm_;
  Tensor ones_;
};

}  // namespace

std::vector<ParameterShape> softmax_parameters(const ModelConfig& model) {
  const std::int64_t queries = model.heads * model.head_size, keys = model.kv_heads * model.head_size;
  std::vector<ParameterShape> parameters = {{"self_attn.q_proj.weight", {queries, model.hidden}, Start::projection},
                                            {"self_attn.k_proj.weight", {keys, model.hidden}, Start::projection},
                                            {"self_attn.v_proj.weight", {keys, model.hidden}, Start::projection}};
  if (model.qk_norm) {
    parameters.push_back({"self_attn.q_norm.weight", {model.head_size}, Start::ones});
    parameters.push_back({"self_attn.k_norm.weight", {model.head_size}, Start::ones});
  }
  if (model.qkv_bias) {
    parameters.push_back({"self_attn.q_proj.bias", {queries}, Start::zeros});
    parameters.push_back({"self_attn.k_proj.bias", {keys}, Start::zeros});
    parameters.push_back({"self_attn.v_proj.bias", {keys}, Start::zeros});
  }
  parameters.push_back({"self_attn.o_proj.weight", {model.hidden, queries}, Start::residual});
  return parameters;
}

std::unique_ptr<Mixer> make_softmax_mixer(const MixerSetup& setup) { return std::make_unique<SoftmaxMixer>(setup, 'S', MaskSpec{}); }

std::unique_ptr<Mixer> make_window_mixer(const MixerSetup& setup) {
  return std::make_unique<SoftmaxMixer>(setup, 'W', MaskSpec{.causal = true, .window_left = setup.model.window});
}

}  // namespace periplus::train
