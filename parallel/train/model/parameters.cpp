#include "parallel/train/model/parameters.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "parallel/train/model/mixer.h"
#include "parallel/train/random.h"
#include "runtime/error.h"

namespace periplus::train {
namespace {

/// Of normal starts. Every layer adds twice to the residual stream; without the smaller start its variance would grow with depth.
double deviation_of(Start start, const Extents& shape, const ModelConfig& model) {
  constexpr double kDeviation = 0.02;
  switch (start) {
    case Start::projection:
      return kDeviation;
    case Start::residual:
      return kDeviation / std::sqrt(2.0 * static_cast<double>(model.layers));
    case Start::taps:
      return 1 / std::sqrt(3.0 * static_cast<double>(shape[shape.dims - 1]));
    default:
      return 0;
  }
}

/// What softplus makes `step` of.
double inverse_softplus(double step) { return step + std::log(-std::expm1(-step)); }

double initial_value(Start start, double deviation, std::mt19937_64& engine) {
  switch (start) {
    case Start::zeros:
      return 0;
    case Start::ones:
      return 1;
    case Start::decay_rates:
      return std::log(1 + 15 * uniform(engine));
    case Start::time_steps:
      return inverse_softplus(0.001 * std::pow(100, uniform(engine)));
    default:
      return deviation * normal(engine);
  }
}

}  // namespace

ParameterTable::ParameterTable(const ModelConfig& model) {
  add("model.embed_tokens.weight", {model.vocabulary, model.hidden}, Start::projection, model);
  matmul_elements_ = 0;  // the embedding is looked up
  end_section();
  for (std::int64_t layer = 0; layer < model.layers; ++layer) add_layer(model, layer);
  first_of_layer_.push_back(parameters_.size());
  final_norm_ = parameters_.size();
  add("model.norm.weight", {model.hidden}, Start::ones, model);
  if (model.tie_embeddings) {
    matmul_elements_ += parameters_.front().elements;
  } else {
    head_ = parameters_.size();
    add("lm_head.weight", {model.vocabulary, model.hidden}, Start::projection, model);
  }
  end_section();
}

std::int64_t ParameterTable::largest_layer() const noexcept {
  const auto layers = sections().subspan(1, sections_.size() - 2);
  return std::ranges::max_element(layers, {}, &Section::elements)->elements;
}

void ParameterTable::end_section() {
  const std::int64_t begin = sections_.empty() ? 0 : sections_.back().begin + sections_.back().elements;
  sections_.push_back({begin, elements_ - begin});
}

void ParameterTable::add(std::string name, const Extents& shape, Start start, const ModelConfig& model) {
  parameters_.push_back({std::move(name), shape, elements_, shape.product(), start, deviation_of(start, shape, model)});
  elements_ += shape.product();
  if (parameters_.back().deviation > 0) matmul_elements_ += shape.product();
}

void ParameterTable::add_layer(const ModelConfig& model, std::int64_t layer) {
  first_of_layer_.push_back(parameters_.size());
  const auto add_to_layer = [&](std::string_view part, const Extents& shape, Start start) {
    add(fmt::format("model.layers.{}.{}", layer, part), shape, start, model);
  };
  add_to_layer("input_layernorm.weight", {model.hidden}, Start::ones);
  const MixerKind* const kind = find_mixer_kind(model.letter_of(layer));
  if (kind == nullptr) throw InternalError(fmt::format("parameters: layer kind '{}' was not checked", model.letter_of(layer)));
  for (const auto& [part, shape, start] : kind->parameters(model)) add_to_layer(part, shape, start);
  add_to_layer("post_attention_layernorm.weight", {model.hidden}, Start::ones);
  add_to_layer("mlp.gate_proj.weight", {model.ffn, model.hidden}, Start::projection);
  add_to_layer("mlp.up_proj.weight", {model.ffn, model.hidden}, Start::projection);
  add_to_layer("mlp.down_proj.weight", {model.hidden, model.ffn}, Start::residual);
  end_section();
}

void initial_values(const Parameter& parameter, std::uint64_t seed, std::int64_t first, TensorView to) {
  std::mt19937_64 engine = engine_for(seed, parameter.name);
  for (std::int64_t i = 0; i < first; ++i) initial_value(parameter.start, parameter.deviation, engine);
  visit_dtype<double, float>(to.dtype(), "initial values", [&]<class T>() {
    for (T& value : to.span<T>()) value = static_cast<T>(initial_value(parameter.start, parameter.deviation, engine));
  });
}

}  // namespace periplus::train
