// Linear attention with no decay, a constant one per head, or one per token and channel (algorithms.md 5.10).
#include "kernels/mixer.h"
#include "parallel/train/model/mixer_recurrent.h"
#include "runtime/device_tensor.h"

namespace periplus::train {
namespace {

using kernels::Update;

constexpr double kGlaDivisor = 16;
constexpr std::int64_t kGlaRank = 16;  // of the product that gates are made by

bool is_gla(const ModelConfig& model) { return model.gate == "gla"; }

class LinearMixer : public RecurrentMixer {
 public:
  explicit LinearMixer(const MixerSetup& setup) : RecurrentMixer(setup, {.decay = decay_of(setup.model)}) {
    if (is_gla(model_) || model_.gate == "basic") return;
    const Tensor constants({std::ssize(layers_), model_.heads}, accumulator_of(dtype_), Memory());
    for (std::int64_t slot = 0; slot < std::ssize(layers_); ++slot) {
      const std::int64_t layer = layers_[static_cast<std::size_t>(slot)];
      const std::vector<double> decays = model_.gate == "retention" ? kernels::retention_log_decays(model_.heads)
                                                                    : kernels::lightning_log_decays(model_.heads, layer, model_.layers);
      copy(ConstTensorView(reinterpret_cast<const std::byte*>(decays.data()), DType::f64, {1, model_.heads}),
           constants.view().slice(0, slot, 1));
    }
    constants_ = to_device(constants, memory_);
  }

 private:
  enum Role : std::size_t { kQ = kOperands, kK, kV, kGateIn, kGateOut };

  static Decay decay_of(const ModelConfig& model) {
    if (model.gate == "basic") return Decay::none;
    return is_gla(model) ? Decay::diagonal : Decay::scalar;
  }

  void plan_operands(const Batch&, const Planning&) override {}

  void reserve_operands() override {
    for (Tensor* tensor : {&q_, &k_, &v_, &gate_, &log_decay_}) *tensor = Tensor();
    for (Tensor* tensor : {&q_, &k_, &v_}) *tensor = Tensor({capacity(), channels()}, dtype_, memory_);
    if (!is_gla(model_)) return;
    gate_ = Tensor({capacity(), channels()}, dtype_, memory_);
    log_decay_ = Tensor({capacity(), channels()}, accumulator_of(dtype_), memory_);
    for (Tensor* tensor : {&narrow_, &dnarrow_})
      *tensor = Tensor({std::min(capacity(), tile_rows(memory_.device())), kGlaRank}, dtype_, memory_);
  }

  void project_operands(const MixerLayer& layer, const Tile& tile, ConstTensorView normed) override {
    train::project(normed, layer.weights[kQ], tile.of(q_), layer.stream);
    train::project(normed, layer.weights[kK], tile.of(k_), layer.stream);
    train::project(normed, layer.weights[kV], tile.of(v_), layer.stream);
    if (!is_gla(model_)) return;
    train::project(normed, layer.weights[kGateIn], tile.top(narrow_), layer.stream);
    train::project(tile.top(narrow_), layer.weights[kGateOut], tile.of(gate_), layer.stream);
  }

  LinearAttentionInputs operands(const MixerLayer& layer, bool) override {
    LinearAttentionInputs inputs{heads(q_), heads(k_), heads(v_)};
    if (is_gla(model_)) {
      kernels::logsigmoid_decay(top(gate_, rows()), kGlaDivisor, top(log_decay_, rows()), layer.stream);
      inputs.log_decay = heads(log_decay_);
    } else if (!constants_.empty()) {
      const TensorView row = constants_.view().slice(0, static_cast<std::int64_t>(layer.slot), 1);
      inputs.log_decay = ConstTensorView(row.bytes(), row.dtype(), {rows(), model_.heads, 1}, {0, 1, 1});
    }
    return inputs;
  }

  void operands_backward(const MixerLayer& layer, const LinearAttentionGradients& gradients, TensorView) override {
    gradients_ = gradients;
    if (!is_gla(model_)) return;
    const Extents flat = {rows(), channels()};
    // Each number is read before it is written, so the gate becomes its own gradient.
    kernels::logsigmoid_decay_backward(gradients.dlog_decay.reshape(flat), top(gate_, rows()), kGlaDivisor, top(gate_, rows()),
                                       layer.stream);
  }

  void project_operands_backward(const MixerLayer& layer, const Tile& tile, ConstTensorView normed, TensorView sum) override {
    const auto back = [&](std::size_t role, ConstTensorView dy) {
      add_weight_gradient(dy, normed, layer.gradients[role], layer.stream);
      project_back(dy, layer.weights[role], sum, Update::accumulate, layer.stream);
    };
    const Extents flat = {tile.rows, channels()};
    back(kQ, tile.of(gradients_.dq).reshape(flat));
    back(kK, tile.of(gradients_.dk).reshape(flat));
    back(kV, tile.of(gradients_.dv).reshape(flat));
    if (!is_gla(model_)) return;
    const TensorView narrow = tile.top(narrow_), dnarrow = tile.top(dnarrow_), dgate = tile.of(gate_);
    train::project(normed, layer.weights[kGateIn], narrow, layer.stream);
    add_weight_gradient(dgate, narrow, layer.gradients[kGateOut], layer.stream);
    project_back(dgate, layer.weights[kGateOut], dnarrow, Update::overwrite, layer.stream);
    back(kGateIn, dnarrow);
  }

  Tensor constants_;         // [slots, heads]: log decays
  Tensor q_, k_, v_, gate_;  // [rows, heads * head_size]
  Tensor log_decay_;         // the same, accumulator type
  Tensor narrow_, dnarrow_;  // [tile, kGlaRank]
  LinearAttentionGradients gradients_;
};

}  // namespace

std::vector<ParameterShape> linear_parameters(const ModelConfig& model) {
  const std::int64_t channels = model.heads * model.head_size;
  const Extents in = {channels, model.hidden};
  auto parameters = gate_and_norm_parameters(model, "linear_attn.g_proj.weight", "linear_attn.g_norm.weight");
  parameters.insert(parameters.end(), {{"linear_attn.q_proj.weight", in, Start::projection},
                                       {"linear_attn.k_proj.weight", in, Start::projection},
                                       {"linear_attn.v_proj.weight", in, Start::projection}});
  if (is_gla(model)) {
    parameters.insert(parameters.end(), {{"linear_attn.gk_proj.0.weight", {kGlaRank, model.hidden}, Start::projection},
                                         {"linear_attn.gk_proj.1.weight", {channels, kGlaRank}, Start::projection}});
  }
  parameters.push_back({"linear_attn.o_proj.weight", {model.hidden, channels}, Start::residual});
  return parameters;
}

std::unique_ptr<Mixer> make_linear_mixer(const MixerSetup& setup) { return std::make_unique<LinearMixer>(setup); }

}  // namespace periplus::train
