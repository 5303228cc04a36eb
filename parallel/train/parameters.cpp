#include "parallel/train/parameters.h"

#include <cmath>

#include <fmt/format.h>

#include "parallel/train/random.h"

namespace periplus::train {
namespace {

constexpr double kDeviation = 0.02;

}  // namespace

ParameterTable::ParameterTable(const ModelConfig& model) {
  add("model.embed_tokens.weight", {model.vocabulary, model.hidden}, kDeviation, false);
  for (std::int64_t layer = 0; layer < model.layers; ++layer) add_layer(model, layer);
  final_norm_ = parameters_.size();
  add("model.norm.weight", {model.hidden}, 0, false);
  if (model.tie_embeddings) {
    matmul_elements_ += parameters_.front().elements;
  } else {
    head_ = parameters_.size();
    add("lm_head.weight", {model.vocabulary, model.hidden}, kDeviation, true);
  }
}

void ParameterTable::add(std::string name, const Extents& shape, double deviation, bool in_matmul) {
  parameters_.push_back({std::move(name), shape, elements_, shape.product(), deviation});
  elements_ += shape.product();
  if (in_matmul) matmul_elements_ += shape.product();
}

void ParameterTable::add_layer(const ModelConfig& model, std::int64_t layer) {
  // Every layer adds twice to the residual stream; without the smaller start its variance would grow with depth.
  const double residual = kDeviation / std::sqrt(2.0 * static_cast<double>(model.layers));
  const std::int64_t queries = model.heads * model.head_size, keys = model.kv_heads * model.head_size;
  const auto name = [&](std::string_view part) { return fmt::format("model.layers.{}.{}.weight", layer, part); };
  add(name("input_layernorm"), {model.hidden}, 0, false);
  add(name("self_attn.q_proj"), {queries, model.hidden}, kDeviation, true);
  add(name("self_attn.k_proj"), {keys, model.hidden}, kDeviation, true);
  add(name("self_attn.v_proj"), {keys, model.hidden}, kDeviation, true);
  add(name("self_attn.o_proj"), {model.hidden, queries}, residual, true);
  add(name("post_attention_layernorm"), {model.hidden}, 0, false);
  add(name("mlp.gate_proj"), {model.ffn, model.hidden}, kDeviation, true);
  add(name("mlp.up_proj"), {model.ffn, model.hidden}, kDeviation, true);
  add(name("mlp.down_proj"), {model.hidden, model.ffn}, residual, true);
}

std::vector<double> initial_values(const Parameter& parameter, std::uint64_t seed) {
  std::vector<double> values(static_cast<std::size_t>(parameter.elements), 1.0);
  if (parameter.deviation == 0) return values;
  std::mt19937_64 engine = engine_for(seed, parameter.name);
  for (double& value : values) value = parameter.deviation * normal(engine);
  return values;
}

}  // namespace periplus::train
