// Mamba-2 as linear attention: q = C, k = B, v = step x, one decay per token and head, a skip of x (algorithms.md 5.10).
#include "kernels/mixer.h"
#include "parallel/train/model/mixer_recurrent.h"

namespace periplus::train {
namespace {

using kernels::Update;

/// x of all heads, then B and C, which all heads share.
std::int64_t convolved_channels(const ModelConfig& model) { return model.heads * model.head_size + 2 * model.head_size; }

class Mamba2Mixer : public RecurrentMixer {
 public:
  explicit Mamba2Mixer(const MixerSetup& setup)
      : RecurrentMixer(setup, {.decay = Decay::scalar, .scale = 1}),
        xbc_(convolved_channels(model_), model_.convolution_width(), dtype_, memory_, layers_.size()) {}
  double exposed_seconds() const override { return RecurrentMixer::exposed_seconds() + xbc_.exposed_seconds(); }

 private:
  enum Role : std::size_t { kXbc = kOperands, kConvolution, kStep, kALog, kStepBias, kSkip };

  void plan_operands(const Batch& batch, const Planning& planning) override { xbc_.plan(batch, planning.communicator); }

  void reserve_operands() override {
    const DType accumulator = accumulator_of(dtype_);
    for (Tensor* tensor : {&v_, &a_, &step_, &dstep_, &log_decay_}) *tensor = Tensor();
    xbc_.reserve(capacity());
    v_ = Tensor({capacity(), channels()}, dtype_, memory_);
    a_ = Tensor({capacity(), model_.heads}, dtype_, memory_);
    for (Tensor* tensor : {&step_, &dstep_, &log_decay_}) *tensor = Tensor({capacity(), model_.heads}, accumulator, memory_);
  }

  void project_operands(const MixerLayer& layer, const Tile& tile, ConstTensorView normed) override {
    xbc_.project(tile, normed, layer.weights[kXbc], layer.stream);
    train::project(normed, layer.weights[kStep], tile.of(a_), layer.stream);
  }

  kernels::SoftplusDecay decay(const MixerLayer& layer) const { return {top(a_, rows()), layer.weights[kALog], layer.weights[kStepBias]}; }
  /// Of x, B or C side by side.
  template <class View>
  View x_of(const View& xbc) const {
    return heads_of(xbc, 0, model_.heads, model_.head_size);
  }
  TensorView b_of(TensorView xbc) const { return heads_of(xbc, channels(), 1, model_.head_size); }
  TensorView c_of(TensorView xbc) const { return heads_of(xbc, channels() + model_.head_size, 1, model_.head_size); }
  ConstTensorView for_all_heads(ConstTensorView shared) const {
    return {shared.bytes(), shared.dtype(), {rows(), model_.heads, model_.head_size}, {shared.stride(0), 0, 1}};
  }

  LinearAttentionInputs operands(const MixerLayer& layer, bool again) override {
    xbc_result_ = xbc_.forward(layer.slot, layer.weights[kConvolution], again, layer.stream);
    kernels::softplus_decay(decay(layer), top(log_decay_, rows()), top(step_, rows()), layer.stream);
    kernels::scale_heads(x_of(xbc_result_), top(step_, rows()), heads(v_), layer.stream);
    return {for_all_heads(c_of(xbc_result_)), for_all_heads(b_of(xbc_result_)), heads(v_), per_head(log_decay_)};
  }

  void add_to_output(const MixerLayer& layer, TensorView out) override {
    kernels::add_skip(x_of(xbc_result_), layer.weights[kSkip], out, layer.stream);
  }

  void operands_backward(const MixerLayer& layer, const LinearAttentionGradients& gradients, TensorView dout) override {
    const TensorView x = x_of(xbc_result_), dxbc = xbc_.dresult(), dstep = top(dstep_, rows()), a = top(a_, rows());
    kernels::scale_heads_backward(gradients.dv, x, top(step_, rows()), x_of(dxbc), dstep, layer.stream);
    kernels::add_skip_backward(dout, x, layer.weights[kSkip], x_of(dxbc), layer.gradients[kSkip], layer.stream);
    kernels::sum_heads(gradients.dk, b_of(dxbc), layer.stream);
    kernels::sum_heads(gradients.dq, c_of(dxbc), layer.stream);
    // a becomes its own gradient.
    kernels::softplus_decay_backward(decay(layer), gradients.dlog_decay.reshape({rows(), model_.heads}), dstep, a, layer.gradients[kALog],
                                     layer.gradients[kStepBias], layer.stream);
    xbc_.backward(layer.slot, layer.weights[kConvolution], layer.gradients[kConvolution], layer.stream);
  }

  void project_operands_backward(const MixerLayer& layer, const Tile& tile, ConstTensorView normed, TensorView sum) override {
    xbc_.project_backward(tile, normed, layer.weights[kXbc], layer.gradients[kXbc], sum, layer.stream);
    add_weight_gradient(tile.of(a_), normed, layer.gradients[kStep], layer.stream);
    project_back(tile.of(a_), layer.weights[kStep], sum, Update::accumulate, layer.stream);
  }

  ConvolvedProjection xbc_;
  TensorView xbc_result_;
  Tensor v_;                         // [rows, heads * head_size]
  Tensor a_;                         // [rows, heads]
  Tensor step_, dstep_, log_decay_;  // the same, accumulator type
};

}  // namespace

std::vector<ParameterShape> mamba2_parameters(const ModelConfig& model) {
  const std::int64_t convolved = convolved_channels(model);
  auto parameters = gate_and_norm_parameters(model, "mixer.in_proj_z.weight", "mixer.norm.weight");
  parameters.insert(parameters.end(), {{"mixer.in_proj_xbc.weight", {convolved, model.hidden}, Start::projection},
                                       {"mixer.conv1d.weight", {convolved, 1, model.convolution_width()}, Start::taps},
                                       {"mixer.in_proj_dt.weight", {model.heads, model.hidden}, Start::projection},
                                       {"mixer.A_log", {model.heads}, Start::decay_rates},
                                       {"mixer.dt_bias", {model.heads}, Start::time_steps},
                                       {"mixer.D", {model.heads}, Start::ones},
                                       {"mixer.out_proj.weight", {model.hidden, model.heads * model.head_size}, Start::residual}});
  return parameters;
}

std::unique_ptr<Mixer> make_mamba2_mixer(const MixerSetup& setup) { return std::make_unique<Mamba2Mixer>(setup); }

}  // namespace periplus::train
