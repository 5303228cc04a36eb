#include "parallel/train/model/model.h"

#include <algorithm>

#include "kernels/transformer.h"
#include "runtime/error.h"

namespace periplus::train {

std::int64_t loss_rows(std::int64_t vocabulary, Device device) {
  const kernels::CrossEntropyOptions defaults;
  if (device.kind == DeviceKind::cpu) return defaults.tile_rows;
  return std::clamp((std::int64_t{1} << 26) / vocabulary, defaults.tile_rows, tile_rows(device));
}

Model::Model(const ModelConfig& config, DType dtype, const Memory& memory, bool keeps_hidden, bool gradients_by_section)
    : config_(config),
      dtype_(dtype),
      memory_(memory),
      keeps_hidden_(keeps_hidden),
      by_section_(gradients_by_section),
      parameters_(config),
      weights_({parameters_.elements()}, dtype, memory) {
  const std::span<const Section> sections = parameters_.sections();
  const auto room = [&](std::int64_t elements) { return Tensor::zeros({elements}, accumulator_of(dtype), memory); };
  if (by_section_) {
    const auto layers = sections.subspan(1, sections.size() - 2);
    const std::int64_t largest_layer = std::ranges::max_element(layers, {}, &Section::elements)->elements;
    section_gradients_ = {room(sections.front().elements), room(largest_layer), room(sections.back().elements)};
  } else {
    gradients_ = room(parameters_.elements());
  }
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
    mixers_.push_back(kind.make({config_, dtype_, memory_, layers}));
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
  if (rows <= capacity_) return;
  // Old tensors go first: two generations at once would double the peak.
  scratch_ = LayerScratch();
  inputs_.clear();
  hidden_.clear();
  for (Tensor* tensor : {&normed_, &rstd_, &dnormed_, &dx_}) *tensor = Tensor();
  const Extents hidden = {rows, config_.hidden};
  scratch_ = LayerScratch(config_, dtype_, rows, keeps_hidden_, memory_);
  for (std::int64_t layer = 0; layer <= config_.layers; ++layer) inputs_.emplace_back(hidden, dtype_, memory_);
  const auto kept = [&] { return keeps_hidden_ ? Tensor({rows, config_.ffn}, dtype_, memory_) : Tensor(); };
  for (std::int64_t layer = 0; layer < config_.layers; ++layer) hidden_.push_back({kept(), kept()});
  for (Tensor* tensor : {&normed_, &dnormed_, &dx_}) *tensor = Tensor(hidden, dtype_, memory_);
  rstd_ = Tensor({rows}, accumulator_of(dtype_), memory_);
  capacity_ = rows;
}

LayerContext Model::context(std::int64_t layer, StreamView stream) const {
  const auto& [mixer, slot] = mixing_[static_cast<std::size_t>(layer)];
  return {scratch_, hidden_[static_cast<std::size_t>(layer)], *mixer, slot, config_.norm_epsilon, stream};
}

void Model::forward_layers(StreamView stream) {
  const ConstTensorView weights = weights_;
  kernels::embedding(batch_->tokens, parameters_.embedding(weights), input(0), stream);
  for (std::int64_t layer = 0; layer < config_.layers; ++layer) {
    layer_forward(context(layer, stream), parameters_.layer(layer, weights), input(layer), input(layer + 1));
  }
}

double Model::output_loss(TensorView dnormed, TensorView dhead, StreamView stream) {
  const ConstTensorView weights = weights_;
  const TensorView normed = top(normed_, rows());
  kernels::rms_norm(input(config_.layers), parameters_.final_norm(weights), config_.norm_epsilon, normed, top(rstd_, rows()), stream);
  const double scale = batch_->valid_labels > 0 ? 1.0 / static_cast<double>(batch_->valid_labels) : 0.0;
  const kernels::CrossEntropyOptions options{.gradient_scale = scale, .tile_rows = loss_rows(config_.vocabulary, stream.device())};
  return kernels::cross_entropy(normed, parameters_.head(weights), batch_->labels, options, dnormed, dhead, memory_, stream).loss_sum;
}

double Model::loss(StreamView stream) {
  forward_layers(stream);
  return output_loss({}, {}, stream);
}

TensorView Model::begin_section(std::size_t section, StreamView stream) const {
  const Section& all = parameters_.sections()[section];
  if (!by_section_) return gradients_.view().slice(0, all.begin, all.elements);
  const std::size_t kind = section == 0 ? 0 : section == parameters_.last_section() ? 2 : 1;
  const TensorView gradients = section_gradients_[kind].view().slice(0, 0, all.elements);
  fill_zero(gradients, stream);
  return gradients;
}

double Model::loss_and_gradients(const TakeSection& take, StreamView stream) {
  forward_layers(stream);
  const ConstTensorView weights = weights_;
  const TensorView dnormed = top(dnormed_, rows()), dx = top(dx_, rows());
  const std::size_t last = parameters_.last_section();
  const std::int64_t last_begin = parameters_.sections()[last].begin;
  const TensorView of_embedding = begin_section(0, stream), behind_layers = begin_section(last, stream);
  const bool tied = parameters_.section_of_head() == 0;
  const TensorView dhead = tied ? parameters_.head(of_embedding) : parameters_.head(behind_layers, last_begin);
  const double loss_sum = output_loss(dnormed, dhead, stream);
  kernels::rms_norm_backward(dnormed, input(config_.layers), parameters_.final_norm(weights), top(rstd_, rows()), dx,
                             kernels::Update::overwrite, parameters_.final_norm(behind_layers, last_begin), stream);
  if (by_section_) take(last, behind_layers);
  for (std::int64_t layer = config_.layers - 1; layer >= 0; --layer) {
    const std::size_t section = ParameterTable::section_of_layer(layer);
    const TensorView gradients = begin_section(section, stream);
    layer_backward(context(layer, stream), parameters_.layer(layer, weights),
                   parameters_.layer(layer, gradients, parameters_.sections()[section].begin), input(layer), dx);
    if (by_section_) take(section, gradients);
  }
  kernels::embedding_backward(batch_->tokens, dx, parameters_.embedding(of_embedding), stream);
  if (by_section_) take(0, of_embedding);
  return loss_sum;
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
