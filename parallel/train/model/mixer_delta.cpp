// Gated DeltaNet: the delta rule on normalised q and k behind a short convolution, with one decay and one beta per token and head
// (algorithms.md 5.10, 6).
#include "kernels/mixer.h"
#include "kernels/transfer.h"
#include "parallel/train/model/mixer_recurrent.h"

namespace periplus::train {
namespace {

using kernels::Update;

constexpr double kL2Epsilon = 1e-6;
constexpr double kBetaCeiling = 1;

class DeltaMixer : public RecurrentMixer {
 public:
  explicit DeltaMixer(const MixerSetup& setup)
      : RecurrentMixer(setup, {.decay = Decay::scalar, .delta_rule = true}),
        qkv_(3 * channels(), model_.convolution_width(), dtype_, memory_, layers_.size()) {}
  double exposed_seconds() const override { return RecurrentMixer::exposed_seconds() + qkv_.exposed_seconds(); }

 private:
  enum Role : std::size_t { kQkv = kOperands, kConvolution, kStep, kBeta, kALog, kStepBias };

  void plan_operands(const Batch& batch, const Planning& planning) override { qkv_.plan(batch, planning.communicator); }

  void reserve_operands() override {
    const DType accumulator = accumulator_of(dtype_);
    for (Tensor* tensor : {&q_, &k_, &a_, &b_, &step_, &log_decay_, &beta_}) *tensor = Tensor();
    qkv_.reserve(capacity());
    for (Tensor* tensor : {&q_, &k_}) *tensor = Tensor({capacity(), channels()}, dtype_, memory_);
    for (Tensor* tensor : {&a_, &b_}) *tensor = Tensor({capacity(), model_.heads}, dtype_, memory_);
    for (Tensor* tensor : {&step_, &log_decay_, &beta_}) *tensor = Tensor({capacity(), model_.heads}, accumulator, memory_);
  }

  void project_operands(const MixerLayer& layer, const Tile& tile, ConstTensorView normed) override {
    qkv_.project(tile, normed, layer.weights[kQkv], layer.stream);
    train::project(normed, layer.weights[kStep], tile.of(a_), layer.stream);
    train::project(normed, layer.weights[kBeta], tile.of(b_), layer.stream);
  }

  kernels::SoftplusDecay decay(const MixerLayer& layer) const { return {top(a_, rows()), layer.weights[kALog], layer.weights[kStepBias]}; }
  /// Number 0, 1, 2: q, k, v side by side.
  TensorView part(TensorView qkv, std::int64_t number) const { return heads_of(qkv, number * channels(), model_.heads, model_.head_size); }

  LinearAttentionInputs operands(const MixerLayer& layer, bool again) override {
    qkv_result_ = qkv_.forward(layer.slot, layer.weights[kConvolution], again, layer.stream);
    kernels::l2_norm(part(qkv_result_, 0), kL2Epsilon, heads(q_), layer.stream);
    kernels::l2_norm(part(qkv_result_, 1), kL2Epsilon, heads(k_), layer.stream);
    kernels::softplus_decay(decay(layer), top(log_decay_, rows()), top(step_, rows()), layer.stream);
    kernels::sigmoid_beta(top(b_, rows()), kBetaCeiling, top(beta_, rows()), layer.stream);
    return {heads(q_), heads(k_), part(qkv_result_, 2), per_head(log_decay_), per_head(beta_)};
  }

  void operands_backward(const MixerLayer& layer, const LinearAttentionGradients& gradients, TensorView) override {
    const TensorView dqkv = qkv_.dresult(), a = top(a_, rows()), b = top(b_, rows());
    const Extents flat = {rows(), model_.heads};
    kernels::l2_norm_backward(gradients.dq, part(qkv_result_, 0), kL2Epsilon, part(dqkv, 0), layer.stream);
    kernels::l2_norm_backward(gradients.dk, part(qkv_result_, 1), kL2Epsilon, part(dqkv, 1), layer.stream);
    kernels::copy(gradients.dv, part(dqkv, 2), layer.stream);
    // a and b become their own gradients.
    kernels::softplus_decay_backward(decay(layer), gradients.dlog_decay.reshape(flat), {}, a, layer.gradients[kALog],
                                     layer.gradients[kStepBias], layer.stream);
    kernels::sigmoid_beta_backward(gradients.dbeta.reshape(flat), b, kBetaCeiling, b, layer.stream);
    qkv_.backward(layer.slot, layer.weights[kConvolution], layer.gradients[kConvolution], layer.stream);
  }

  void project_operands_backward(const MixerLayer& layer, const Tile& tile, ConstTensorView normed, TensorView sum) override {
    qkv_.project_backward(tile, normed, layer.weights[kQkv], layer.gradients[kQkv], sum, layer.stream);
    for (const auto& [role, dy] : {std::pair{kStep, tile.of(a_)}, std::pair{kBeta, tile.of(b_)}}) {
      add_weight_gradient(dy, normed, layer.gradients[role], layer.stream);
      project_back(dy, layer.weights[role], sum, Update::accumulate, layer.stream);
    }
  }

  ConvolvedProjection qkv_;
  TensorView qkv_result_;
  Tensor q_, k_;                    // [rows, heads * head_size]
  Tensor a_, b_;                    // [rows, heads]
  Tensor step_, log_decay_, beta_;  // the same, accumulator type
};

}  // namespace

std::vector<ParameterShape> delta_parameters(const ModelConfig& model) {
  const std::int64_t channels = model.heads * model.head_size;
  auto parameters = gate_and_norm_parameters(model, "linear_attn.in_proj_z.weight", "linear_attn.norm.weight");
  parameters.insert(parameters.end(), {{"linear_attn.in_proj_qkv.weight", {3 * channels, model.hidden}, Start::projection},
                                       {"linear_attn.conv1d.weight", {3 * channels, 1, model.convolution_width()}, Start::taps},
                                       {"linear_attn.in_proj_a.weight", {model.heads, model.hidden}, Start::projection},
                                       {"linear_attn.in_proj_b.weight", {model.heads, model.hidden}, Start::projection},
                                       {"linear_attn.A_log", {model.heads}, Start::decay_rates},
                                       {"linear_attn.dt_bias", {model.heads}, Start::time_steps},
                                       {"linear_attn.out_proj.weight", {model.hidden, channels}, Start::residual}});
  return parameters;
}

std::unique_ptr<Mixer> make_delta_mixer(const MixerSetup& setup) { return std::make_unique<DeltaMixer>(setup); }

}  // namespace periplus::train
