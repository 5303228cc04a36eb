#include "parallel/train/model.h"

#include "kernels/transformer.h"

namespace periplus::train {
namespace {

TensorView top(const Tensor& tensor, std::int64_t rows) { return tensor.view().slice(0, 0, rows); }

}  // namespace

Model::Model(const ModelConfig& config, DType dtype, const Memory& memory)
    : config_(config),
      dtype_(dtype),
      memory_(memory),
      parameters_(config),
      weights_({parameters_.elements()}, dtype, memory),
      gradients_(Tensor::zeros({parameters_.elements()}, accumulator_of(dtype), memory)) {}

AttentionProblem Model::attention_problem(const Batch& batch) const {
  const int head_size = static_cast<int>(config_.head_size);
  return {.layout = batch.layout,
          .mask = Mask(MaskSpec{}, batch.layout.cu_seqlens()),
          .q_heads = static_cast<int>(config_.heads),
          .kv_heads = static_cast<int>(config_.kv_heads),
          .head_size = head_size,
          .value_size = head_size,
          .dtype = dtype_};
}

void Model::reserve(std::int64_t rows) {
  if (rows <= capacity_) return;
  // Old tensors go first: two generations at once would double the peak.
  scratch_ = LayerScratch();
  saved_.clear();
  for (Tensor* tensor : {&output_, &normed_, &rstd_, &dnormed_, &dx_}) *tensor = Tensor();
  const DType accumulator = accumulator_of(dtype_);
  const Extents hidden = {rows, config_.hidden};
  scratch_ = LayerScratch(config_, dtype_, rows, memory_);
  for (std::int64_t layer = 0; layer < config_.layers; ++layer) {
    saved_.push_back({Tensor(hidden, dtype_, memory_), Tensor({rows, config_.heads * config_.head_size}, dtype_, memory_),
                      Tensor({rows, config_.heads, 1}, accumulator, memory_)});
  }
  for (Tensor* tensor : {&output_, &normed_, &dnormed_, &dx_}) *tensor = Tensor(hidden, dtype_, memory_);
  rstd_ = Tensor({rows}, accumulator, memory_);
  capacity_ = rows;
}

LayerContext Model::context(const Batch& batch, DistributedAttention& attention, StreamView stream) const {
  return {config_, scratch_, batch.positions, attention, stream};
}

LayerSaved Model::saved(std::int64_t layer, std::int64_t rows) const {
  const Saved& tensors = saved_[static_cast<std::size_t>(layer)];
  return {top(tensors.x, rows), top(tensors.attended, rows), top(tensors.lse, rows)};
}

void Model::forward_layers(const Batch& batch, DistributedAttention& attention, StreamView stream) {
  const auto rows = static_cast<std::int64_t>(batch.tokens.size());
  reserve(rows);
  const ConstTensorView weights = weights_;
  kernels::embedding(batch.tokens, parameters_.embedding(weights), saved(0, rows).x, stream);
  for (std::int64_t layer = 0; layer < config_.layers; ++layer) {
    const bool last = layer + 1 == config_.layers;
    const TensorView x_next = last ? top(output_, rows) : saved(layer + 1, rows).x;
    layer_forward(context(batch, attention, stream), parameters_.layer(layer, weights), saved(layer, rows), x_next);
  }
}

double Model::output_loss(const Batch& batch, TensorView dnormed, TensorView dhead, StreamView stream) {
  const auto rows = static_cast<std::int64_t>(batch.tokens.size());
  const ConstTensorView weights = weights_;
  const TensorView normed = top(normed_, rows);
  kernels::rms_norm(top(output_, rows), parameters_.final_norm(weights), kNormEpsilon, normed, top(rstd_, rows), stream);
  const double scale = batch.valid_labels > 0 ? 1.0 / static_cast<double>(batch.valid_labels) : 0.0;
  return kernels::cross_entropy(normed, parameters_.head(weights), batch.labels, {.gradient_scale = scale}, dnormed, dhead, memory_, stream)
      .loss_sum;
}

double Model::loss(const Batch& batch, DistributedAttention& attention, StreamView stream) {
  forward_layers(batch, attention, stream);
  return output_loss(batch, {}, {}, stream);
}

double Model::loss_and_gradients(const Batch& batch, DistributedAttention& attention, StreamView stream) {
  forward_layers(batch, attention, stream);
  const auto rows = static_cast<std::int64_t>(batch.tokens.size());
  const ConstTensorView weights = weights_;
  const TensorView gradients = gradients_, dnormed = top(dnormed_, rows), dx = top(dx_, rows);
  const double loss_sum = output_loss(batch, dnormed, parameters_.head(gradients), stream);
  kernels::rms_norm_backward(dnormed, top(output_, rows), parameters_.final_norm(weights), top(rstd_, rows), dx, kernels::Update::overwrite,
                             parameters_.final_norm(gradients), stream);
  for (std::int64_t layer = config_.layers - 1; layer >= 0; --layer) {
    layer_backward(context(batch, attention, stream), parameters_.layer(layer, weights), parameters_.layer(layer, gradients),
                   saved(layer, rows), dx);
  }
  kernels::embedding_backward(batch.tokens, dx, parameters_.embedding(gradients), stream);
  return loss_sum;
}

double Model::flops(const Batch& batch) const {
  const auto area = static_cast<double>(Mask(MaskSpec{}, batch.layout.cu_seqlens()).area());
  const double matrices = 6.0 * static_cast<double>(parameters_.matmul_elements()) * static_cast<double>(batch.layout.tokens());
  return matrices + 14.0 * static_cast<double>(config_.layers * config_.heads * config_.head_size) * area;
}

}  // namespace periplus::train
