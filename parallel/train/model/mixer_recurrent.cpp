#include "parallel/train/model/mixer_recurrent.h"

#include "kernels/transformer.h"

namespace periplus::train {

using kernels::Update;

RecurrentMixer::RecurrentMixer(const MixerSetup& setup, const Form& form)
    : Mixer(setup, {{{setup.model.heads * setup.model.head_size}, setup.dtype}}),
      model_(setup.model),
      dtype_(setup.dtype),
      memory_(setup.memory),
      layers_(setup.layers),
      form_(form),
      saved_(setup.layers.size()) {}

std::vector<ParameterShape> gate_and_norm_parameters(const ModelConfig& model, std::string_view gate, std::string_view norm) {
  return {{gate, {model.heads * model.head_size, model.hidden}, Start::projection}, {norm, {model.head_size}, Start::ones}};
}

void RecurrentMixer::plan(const Batch& batch, const Planning& planning) {
  recurrence_.reset();
  rows_ = std::ssize(batch.tokens);
  const LinearAttentionProblem problem = {.layout = batch.layout,
                                          .heads = static_cast<int>(model_.heads),
                                          .head_size = static_cast<int>(model_.head_size),
                                          .dtype = dtype_,
                                          .decay = form_.decay,
                                          .delta_rule = form_.delta_rule,
                                          .scale = form_.scale};
  LinearAttentionOptions how = planning.linear;
  how.keep_transitions = keeps_transitions_ = how.keep_transitions && form_.delta_rule;
  recurrence_.emplace(problem, how, planning.communicator, memory_, planning.tracer, planning.stream);
  reserve();
  plan_operands(batch, planning);
}

void RecurrentMixer::reserve() {
  kept_.resize(rows_);
  const std::int64_t units = recurrence_->units(), transitions = recurrence_->transition_rows();
  if (rows_ <= capacity_ && units <= unit_capacity_ && transitions <= transition_capacity_) return;
  capacity_ = std::max(capacity_, rows_);
  unit_capacity_ = std::max(unit_capacity_, units);
  transition_capacity_ = std::max(transition_capacity_, transitions);
  try {
    make_room();
  } catch (...) {
    capacity_ = unit_capacity_ = transition_capacity_ = -1;
    throw;
  }
}

void RecurrentMixer::make_room() {
  // Old tensors go first: two generations at once would double the peak.
  for (Saved& saved : saved_) saved = {};
  for (Tensor* tensor : {&z_, &dout_, &dq_, &dk_, &dv_, &dlog_decay_, &dbeta_, &normed_out_, &output_, &rstd_}) *tensor = Tensor();
  const DType accumulator = accumulator_of(dtype_);
  const std::int64_t tile = std::min(capacity_, tile_rows(memory_.device()));
  for (Tensor* tensor : {&z_, &dout_, &dq_, &dk_, &dv_}) *tensor = Tensor({capacity_, channels()}, dtype_, memory_);
  if (form_.decay != Decay::none) {
    dlog_decay_ = Tensor({capacity_, form_.decay == Decay::scalar ? model_.heads : channels()}, accumulator, memory_);
  }
  if (form_.delta_rule) dbeta_ = Tensor({capacity_, model_.heads}, accumulator, memory_);
  for (Tensor* tensor : {&normed_out_, &output_}) *tensor = Tensor({tile, channels()}, dtype_, memory_);
  rstd_ = Tensor({tile, model_.heads}, accumulator, memory_);
  for (Saved& saved : saved_) {
    saved.incoming = Tensor({unit_capacity_, model_.heads, model_.head_size * model_.head_size}, accumulator, memory_);
    if (keeps_transitions_) {
      saved.transitions = Tensor({transition_capacity_, model_.heads, model_.head_size * model_.head_size}, accumulator, memory_);
    }
  }
  reserve_operands();
}

LinearAttentionOutputs RecurrentMixer::outputs(const MixerLayer& layer) const {
  const Saved& saved = saved_[layer.slot];
  LinearAttentionOutputs outputs{heads(out(layer)), top(saved.incoming, recurrence_->units())};
  if (keeps_transitions_) outputs.transitions = top(saved.transitions, recurrence_->transition_rows());
  return outputs;
}

/// Of the recurrence token by token: 2 per number of the state to decay and write, 2 to read (the delta rule reads twice), and
/// backward twice that.
double RecurrentMixer::flops(const Batch& batch) const {
  const double per_number = form_.delta_rule ? 18 : 12;
  return per_number * static_cast<double>(batch.layout.tokens() * channels() * model_.head_size);
}

void RecurrentMixer::project(const MixerLayer& layer, const Tile& tile, ConstTensorView normed) {
  train::project(normed, layer.weights[kZ], tile.of(z_), layer.stream);
  project_operands(layer, tile, normed);
}

void RecurrentMixer::forward(const MixerLayer& layer) {
  recurrence_->forward(operands(layer, false), outputs(layer));
  add_to_output(layer, heads(out(layer)));
}

ConstTensorView RecurrentMixer::output(const MixerLayer& layer, const Tile& tile) {
  const Extents by_head = {tile.rows * model_.heads, model_.head_size};
  const TensorView normed = tile.top(normed_out_), output = tile.top(output_);
  kernels::rms_norm(tile.of(out(layer)).reshape(by_head), layer.weights[kNorm], model_.norm_epsilon, normed.reshape(by_head),
                    tile.top(rstd_).reshape({by_head[0]}), layer.stream);
  kernels::swiglu(tile.of(z_), normed, output, layer.stream);
  return output;
}

void RecurrentMixer::output_backward(const MixerLayer& layer, const Tile& tile) {
  const Extents by_head = {tile.rows * model_.heads, model_.head_size};
  const TensorView normed = tile.top(normed_out_), z = tile.of(z_), dout = tile.of(dout_);
  kernels::swiglu_backward(dout, z, normed, z, normed, layer.stream);  // z and normed become their own gradients
  kernels::rms_norm_backward(normed.reshape(by_head), tile.of(out(layer)).reshape(by_head), layer.weights[kNorm],
                             tile.top(rstd_).reshape({by_head[0]}), dout.reshape(by_head), Update::overwrite, layer.gradients[kNorm],
                             layer.stream);
}

void RecurrentMixer::backward(const MixerLayer& layer) {
  LinearAttentionGradients gradients{heads(dq_), heads(dk_), heads(dv_)};
  if (form_.decay == Decay::scalar) gradients.dlog_decay = per_head(dlog_decay_);
  if (form_.decay == Decay::diagonal) gradients.dlog_decay = heads(dlog_decay_);
  if (form_.delta_rule) gradients.dbeta = per_head(dbeta_);
  recurrence_->backward(operands(layer, true), outputs(layer), heads(dout_), gradients);
  operands_backward(layer, gradients, heads(dout_));
}

void RecurrentMixer::project_backward(const MixerLayer& layer, const Tile& tile, ConstTensorView normed, TensorView sum) {
  const TensorView dz = tile.of(z_);
  add_weight_gradient(dz, normed, layer.gradients[kZ], layer.stream);
  project_back(dz, layer.weights[kZ], sum, Update::overwrite, layer.stream);
  project_operands_backward(layer, tile, normed, sum);
}

void ConvolvedProjection::plan(const Batch& batch, const comm::Communicator& communicator) {
  convolution_.reset();
  rows_ = std::ssize(batch.tokens);
  convolution_.emplace(ConvolutionProblem{batch.layout, channels_, width_, dtype_}, communicator, memory_);
  for (Tensor& halo : halos_) {
    const Extents shape = {convolution_->units(), width_ - 1, channels_};
    if (halo.empty() || !(halo.shape() == shape)) halo = Tensor(shape, dtype_, memory_);
  }
}

void ConvolvedProjection::reserve(std::int64_t rows) {
  for (Tensor* tensor : {&before_, &result_, &dresult_}) *tensor = Tensor();
  for (Tensor* tensor : {&before_, &result_, &dresult_}) *tensor = Tensor({rows, channels_}, dtype_, memory_);
}

void ConvolvedProjection::project(const Tile& tile, ConstTensorView normed, ConstTensorView weight, StreamView stream) {
  train::project(normed, weight, tile.of(before_), stream);
}

TensorView ConvolvedProjection::forward(std::size_t slot, ConstTensorView weight, bool again, StreamView stream) {
  const TensorView x = top(before_, rows_), y = top(result_, rows_);
  if (again) {
    convolution_->forward_again(x, taps(weight), halos_[slot], y, stream);
  } else {
    convolution_->forward(x, taps(weight), halos_[slot], y, stream);
  }
  return y;
}

void ConvolvedProjection::backward(std::size_t slot, ConstTensorView weight, TensorView dweight, StreamView stream) {
  // The result is not needed any more, and becomes the gradient of the projection.
  convolution_->backward(top(before_, rows_), taps(weight), halos_[slot], dresult(), top(result_, rows_),
                         dweight.reshape({channels_, width_}), stream);
}

void ConvolvedProjection::project_backward(const Tile& tile, ConstTensorView normed, ConstTensorView weight, TensorView dweight,
                                           TensorView sum, StreamView stream) {
  add_weight_gradient(tile.of(result_), normed, dweight, stream);
  project_back(tile.of(result_), weight, sum, Update::accumulate, stream);
}

}  // namespace periplus::train
