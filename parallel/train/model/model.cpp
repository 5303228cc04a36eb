#include "parallel/train/model/model.h"

#include <algorithm>

#include "kernels/transformer.h"
#include "runtime/error.h"

namespace periplus::train {
namespace {

const ModelConfig& checked(const ModelConfig& config, const Memory& memory, const ModelStorage& storage) {
  check(config);
  if (storage.offload && memory.device().kind == DeviceKind::cpu) {
    throw InvalidArgument(
        "model: run.offload_activations moves what layers keep to host memory, and there it is where ranks compute on the CPU; "
        "leave it out or take --device cuda");
  }
  return config;
}

}  // namespace

std::int64_t loss_rows(std::int64_t vocabulary, Device device) {
  const kernels::CrossEntropyOptions defaults;
  if (device.kind == DeviceKind::cpu) return defaults.tile_rows;
  return std::clamp((std::int64_t{1} << 26) / vocabulary, defaults.tile_rows, tile_rows(device));
}

Model::Model(const ModelConfig& config, DType dtype, const Memory& memory, const ModelStorage& storage)
    : config_(checked(config, memory, storage)),
      dtype_(dtype),
      memory_(memory),
      keeps_hidden_(storage.hidden),
      offload_(storage.offload),
      parameters_(config),
      buffers_(parameters_, dtype, memory, storage.weights, storage.gradients),
      inputs_(static_cast<std::size_t>(config.layers), {{{config.hidden}, dtype}}, memory, storage.offload),
      hidden_(storage.hidden ? static_cast<std::size_t>(config.layers) : 0, {{{config.ffn}, dtype}, {{config.ffn}, dtype}}, memory,
              storage.offload) {
  make_mixers();
}

void Model::make_mixers() {
  mixing_.resize(static_cast<std::size_t>(config_.layers));
  for (const MixerKind& kind : mixer_kinds()) {
    std::vector<std::int64_t> layers;
    for (std::int64_t layer = 0; layer < config_.layers; ++layer) {
      if (config_.letter_of(layer) == kind.letter) layers.push_back(layer);
    }
    if (layers.empty()) continue;
    mixers_.push_back(kind.make({config_, dtype_, memory_, layers, offload_}));
    for (std::size_t slot = 0; slot < layers.size(); ++slot) {
      mixing_[static_cast<std::size_t>(layers[slot])] = {mixers_.back().get(), slot};
    }
  }
}

void Model::plan(const Batch& batch, const Planning& planning) {
  batch_ = &batch;
  for (const auto& mixer : mixers_) mixer->plan(batch, planning);
  reserve(rows());
}

std::int64_t Model::rows() const {
  if (batch_ == nullptr) throw InternalError("model: no batch is planned; call plan first");
  return std::ssize(batch_->tokens);
}

void Model::reserve(std::int64_t rows) {
  inputs_.resize(rows);
  hidden_.resize(rows);
  if (rows <= capacity_) return;
  capacity_ = -1;  // until memory is had
  // Old tensors go first: two generations at once would double the peak.
  scratch_ = LayerScratch();
  for (Tensor* tensor : {&output_, &normed_, &rstd_, &dnormed_, &dx_}) *tensor = Tensor();
  const Extents hidden = {rows, config_.hidden};
  scratch_ = LayerScratch(config_, dtype_, rows, keeps_hidden_, memory_);
  for (Tensor* tensor : {&output_, &normed_, &dnormed_, &dx_}) *tensor = Tensor(hidden, dtype_, memory_);
  rstd_ = Tensor({rows}, accumulator_of(dtype_), memory_);
  capacity_ = rows;
}

LayerContext Model::context(std::int64_t layer, bool has_backward, StreamView stream) const {
  const auto set = static_cast<std::size_t>(layer);
  const auto& [mixer, slot] = mixing_[set];
  std::optional<LayerHidden> hidden;
  if (keeps_hidden_) hidden = {hidden_.tensor(set, 0), hidden_.tensor(set, 1)};
  return {scratch_, hidden, *mixer, slot, config_.norm_epsilon, has_backward, stream};
}

void Model::forward_layers(bool has_backward, StreamView stream, const SectionExchange& exchange) {
  buffers_.forget_weights();
  inputs_.begin_write(0, stream);
  kernels::embedding(batch_->tokens, parameters_.embedding(buffers_.weights_of(0, exchange).view), input(0), stream);
  inputs_.end_write(0, stream, has_backward);
  for (std::int64_t layer = 0; layer < config_.layers; ++layer) {
    const auto [weights, begin] = buffers_.weights_of(ParameterTable::section_of_layer(layer), exchange);
    const auto set = static_cast<std::size_t>(layer);
    const bool last = layer + 1 == config_.layers;
    if (keeps_hidden_) hidden_.begin_write(set, stream);
    if (!last) inputs_.begin_write(set + 1, stream);
    layer_forward(context(layer, has_backward, stream), parameters_.layer(layer, weights, begin), input(layer), input(layer + 1));
    if (keeps_hidden_) hidden_.end_write(set, stream, has_backward);
    if (!last) inputs_.end_write(set + 1, stream, has_backward);
  }
}

double Model::output_loss(TensorView dnormed, TensorView dhead, StreamView stream, const SectionExchange& exchange) {
  const auto [weights, begin] = buffers_.weights_of(parameters_.last_section(), exchange);
  const auto [of_head, head_begin] = buffers_.weights_of(parameters_.section_of_head(), exchange);
  const TensorView normed = top(normed_, rows());
  kernels::rms_norm(input(config_.layers), parameters_.final_norm(weights, begin), config_.norm_epsilon, normed, top(rstd_, rows()),
                    stream);
  const double scale = batch_->valid_labels > 0 ? 1.0 / static_cast<double>(batch_->valid_labels) : 0.0;
  const kernels::CrossEntropyOptions options{.gradient_scale = scale, .tile_rows = loss_rows(config_.vocabulary, stream.device())};
  const ConstTensorView head = parameters_.head(of_head, head_begin);
  return kernels::cross_entropy(normed, head, batch_->labels, options, dnormed, dhead, memory_, stream).loss_sum;
}

double Model::loss(StreamView stream, const SectionExchange& exchange) {
  forward_layers(false, stream, exchange);
  return output_loss({}, {}, stream, exchange);
}

double Model::loss_and_gradients(StreamView stream, const SectionExchange& exchange) {
  forward_layers(true, stream, exchange);
  const TensorView dnormed = top(dnormed_, rows()), dx = top(dx_, rows());
  const std::size_t last = parameters_.last_section();
  const auto of_embedding = buffers_.begin_gradients(0, stream), behind_layers = buffers_.begin_gradients(last, stream);
  const auto& [of_head, head_begin] = parameters_.section_of_head() == last ? behind_layers : of_embedding;
  const double loss_sum = output_loss(dnormed, parameters_.head(of_head, head_begin), stream, exchange);
  const auto [weights_behind, begin_behind] = buffers_.weights_of(last, exchange);
  kernels::rms_norm_backward(dnormed, input(config_.layers), parameters_.final_norm(weights_behind, begin_behind), top(rstd_, rows()), dx,
                             kernels::Update::overwrite, parameters_.final_norm(behind_layers.view, behind_layers.begin), stream);
  buffers_.end_gradients(last, behind_layers, exchange);
  for (std::int64_t layer = config_.layers - 1; layer >= 0; --layer) {
    const std::size_t section = ParameterTable::section_of_layer(layer);
    const auto weights = buffers_.weights_of(section, exchange);
    const auto gradients = buffers_.begin_gradients(section, stream);
    const auto set = static_cast<std::size_t>(layer);
    inputs_.begin_read(set, stream);
    if (keeps_hidden_) hidden_.begin_read(set, stream);
    layer_backward(context(layer, true, stream), parameters_.layer(layer, weights.view, weights.begin),
                   parameters_.layer(layer, gradients.view, gradients.begin), input(layer), dx);
    inputs_.end_read(set, stream);
    if (keeps_hidden_) hidden_.end_read(set, stream);
    buffers_.end_gradients(section, gradients, exchange);
  }
  kernels::embedding_backward(batch_->tokens, dx, parameters_.embedding(of_embedding.view), stream);
  buffers_.end_gradients(0, of_embedding, exchange);
  return loss_sum;
}

// In the order of loss_and_gradients.
void Model::stand_by(StreamView stream, const SectionExchange& exchange) {
  buffers_.forget_weights();
  const std::size_t last = parameters_.last_section();
  for (std::size_t section = 0; section <= last; ++section) buffers_.weights_of(section, exchange);
  const auto of_embedding = buffers_.begin_gradients(0, stream), behind_layers = buffers_.begin_gradients(last, stream);
  buffers_.end_gradients(last, behind_layers, exchange);
  for (std::size_t section = last - 1; section > 0; --section) {
    buffers_.weights_of(section, exchange);
    buffers_.end_gradients(section, buffers_.begin_gradients(section, stream), exchange);
  }
  buffers_.end_gradients(0, of_embedding, exchange);
}

double Model::flops(const Batch& batch) const {
  double flops = 6.0 * static_cast<double>(parameters_.matmul_elements()) * static_cast<double>(batch.layout.tokens());
  for (const Mixing& mixing : mixing_) flops += mixing.mixer->flops(batch);
  return flops;
}

double Model::exposed_seconds() const {
  double seconds = 0;
  for (const auto& mixer : mixers_) seconds += mixer->exposed_seconds();
  return seconds;
}

}  // namespace periplus::train
