// What lets transformers' from_pretrained() read the folder of a checkpoint, and us one that transformers saved.
#include "parallel/train/checkpoint/hugging_face.h"

#include <array>
#include <cmath>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "parallel/train/model/layer.h"
#include "parallel/train/model/rotary.h"
#include "runtime/error.h"

namespace periplus::train {

using nlohmann::json;
using Texts = std::map<std::string, std::string>;

namespace {

constexpr const char *kContext = "max_position_embeddings", *kOriginalContext = "original_max_position_embeddings";

/// The names of the two turns.
std::array<const char*, 2> turn_keys(const std::string& scaling) {
  if (scaling == "llama3") return {"low_freq_factor", "high_freq_factor"};
  return {"beta_slow", "beta_fast"};
}

/// rope_scaling of a config.json. YaRN's original context is not in it: all versions take max_position_embeddings then, and some take a
/// factor from both if it is.
json rope_scaling_of(const std::string& scaling, double factor, std::int64_t original, std::vector<double> turns) {
  if (scaling == "none") return nullptr;
  json object = {{"rope_type", scaling}, {"factor", factor}};
  if (scaling == "linear") return object;
  if (turns.empty()) turns = default_rope_turns(scaling);
  const auto keys = turn_keys(scaling);
  for (const std::size_t i : {0u, 1u}) object[keys[i]] = turns[i];
  if (scaling == "llama3") object[kOriginalContext] = original;
  return object;
}

}  // namespace

std::string hugging_face_config(const Manifest& manifest, DType dtype) {
  const auto text = [&](const std::string& key) -> const std::string& { return manifest.config.at(key); };
  const auto value = [&](const std::string& key) { return json::parse(text(key)); };
  const std::string& scaling = text("model.rope_scaling");
  const std::string used = text("model.pattern").substr(0, value("model.layers").get<std::size_t>());
  const bool whole = used.find_first_not_of('S') == used.npos, window = used.find_first_not_of('W') == used.npos;
  if (!whole && !window) return {};
  const auto end = manifest.config.find("data.document_end");  // older manifests have none
  const std::int64_t document_end = end == manifest.config.end() ? -1 : std::stoll(end->second);
  json config = {{"architectures", json::array({whole ? "LlamaForCausalLM" : "MistralForCausalLM"})},
                 {"model_type", whole ? "llama" : "mistral"},
                 {"num_hidden_layers", value("model.layers")},
                 {"hidden_size", value("model.hidden")},
                 {"num_attention_heads", value("model.heads")},
                 {"num_key_value_heads", value("model.kv_heads")},
                 {"head_dim", value("model.head_size")},
                 {"intermediate_size", value("model.ffn")},
                 {"hidden_act", "silu"},
                 {"vocab_size", value("model.vocabulary")},
                 {"tie_word_embeddings", value("model.tie_embeddings")},
                 {"rope_theta", value("model.rope_theta")},
                 {"rms_norm_eps", kNormEpsilon},
                 {"rope_scaling",
                  rope_scaling_of(scaling, value("model.rope_factor"), value("model.rope_original_context"), value("model.rope_turns"))},
                 {kContext, value(scaling == "yarn" ? "model.rope_original_context" : "data.context")},
                 {"bos_token_id", nullptr},
                 {"eos_token_id", document_end < 0 ? json() : json(document_end)},
                 {"torch_dtype", dtype == DType::f64 ? "float64" : "float32"}};
  if (window) config["sliding_window"] = value("model.window").get<std::int64_t>() + 1;  // it counts the token itself
  return config.dump(1) + "\n";
}

namespace {

struct Computed {
  const char* key;
  json here;
  json unless_given;  // in transformers
};

/// Keys that have one value here.
void require_computed(const json& config) {
  const std::array<Computed, 5> only = {{{"hidden_act", "silu", "silu"},
                                         {"rms_norm_eps", kNormEpsilon, 1e-6},
                                         {"attention_bias", false, false},
                                         {"mlp_bias", false, false},
                                         {"pretraining_tp", 1, 1}}};
  for (const auto& [key, here, unless_given] : only) {
    const json there = config.value(key, unless_given);
    if (there != here) throw InvalidArgument(fmt::format("{} is {}, and only {} is computed here", key, there.dump(), here.dump()));
  }
}

/// get<std::int64_t>() cuts fractions off, and what is too large is anything.
std::int64_t whole_number(const json& object, const char* key) {
  const json& value = object.at(key);
  const double number = value.get<double>();
  if (number != std::trunc(number) || std::abs(number) >= 0x1p63)
    throw InvalidArgument(fmt::format("{} is {}; it must be a whole number of 64 bits", key, value.dump()));
  return value.get<std::int64_t>();
}

/// model.rope_* keys.
Texts rope_of(const json& config) {
  json rope = config.value("rope_scaling", json());
  if (const auto parameters = config.find("rope_parameters"); parameters != config.end()) rope = *parameters;  // since transformers 5
  if (rope.is_null()) rope = json::object();
  const auto refuse = [&](const std::string& why) { return InvalidArgument(fmt::format("rope_scaling is {}, and {}", rope.dump(), why)); };
  if (!rope.is_object()) throw refuse("no object");
  const std::string kind = rope.value("rope_type", rope.value("type", "default")), scaling = kind == "default" ? "none" : kind;
  Texts keys = {{"model.rope_theta", fmt::format("{}", rope.value("rope_theta", config.value("rope_theta", 10000.0)))},
                {"model.rope_scaling", scaling}};
  if (scaling != "none" && scaling != "linear" && scaling != "llama3" && scaling != "yarn")
    throw refuse("only linear, llama3 and yarn are computed here");
  const auto [low, high] = turn_keys(scaling);
  for (const auto& [key, value] : rope.items()) {
    const bool known = key == "rope_type" || key == "type" || key == "factor" || key == "rope_theta" || key == low || key == high ||
                       key == kOriginalContext || (key == "truncate" && value == true);
    if (!known && !value.is_null()) throw refuse(fmt::format("{} is not computed here", key));
  }
  if (scaling == "none") return keys;
  const double factor = rope.at("factor");
  keys["model.rope_factor"] = fmt::format("{}", factor);
  if (scaling == "linear") return keys;
  const bool has_original = rope.contains(kOriginalContext);
  const std::int64_t original = has_original ? whole_number(rope, kOriginalContext) : whole_number(config, kContext);
  if (scaling == "yarn" && has_original && factor * static_cast<double>(original) != config.at(kContext).get<double>())
    throw refuse(fmt::format("{} is {}, which some versions of transformers divide by the original one for a factor", kContext,
                             config.at(kContext).dump()));
  const std::vector<double> defaults = default_rope_turns(scaling);
  const std::vector<double> turns = {rope.value(low, defaults[0]), rope.value(high, defaults[1])};
  keys["model.rope_original_context"] = fmt::format("{}", original);
  if (turns != defaults) keys["model.rope_turns"] = fmt::format("[{}, {}]", turns[0], turns[1]);
  return keys;
}

}  // namespace

std::map<std::string, std::string> model_of_hugging_face(const std::string& text) {
  try {
    const json config = json::parse(text);
    const std::string type = config.at("model_type");
    if (type != "llama" && type != "mistral")
      throw InvalidArgument(fmt::format("model_type is {}, and only llama and mistral are computed here", json(type).dump()));
    require_computed(config);
    const auto integer = [&](const char* key, std::int64_t otherwise = -1) {
      const bool given = config.contains(key) && !config.at(key).is_null();
      return given || otherwise < 0 ? whole_number(config, key) : otherwise;
    };
    const std::int64_t heads = integer("num_attention_heads"), hidden = integer("hidden_size");
    if (heads < 1 || hidden < 1) throw InvalidArgument(fmt::format("hidden_size is {} and num_attention_heads {}", hidden, heads));
    // It counts the token itself. null is none, and no key is the default of transformers.
    const std::int64_t unless_given = type == "mistral" && !config.contains("sliding_window") ? 4096 : 0;
    const std::int64_t window = type == "mistral" ? integer("sliding_window", unless_given) : 0;
    const auto number = [](std::int64_t value) { return fmt::format("{}", value); };
    Texts keys = {{"model.layers", number(integer("num_hidden_layers"))},
                  {"model.hidden", number(hidden)},
                  {"model.heads", number(heads)},
                  {"model.kv_heads", number(integer("num_key_value_heads", heads))},
                  {"model.head_size", number(integer("head_dim", hidden / heads))},
                  {"model.ffn", number(integer("intermediate_size"))},
                  {"model.vocabulary", number(integer("vocab_size"))},
                  {"model.pattern", window > 0 ? "W" : "S"},
                  {"model.window", number(window > 0 ? window - 1 : 0)},
                  {"model.tie_embeddings", fmt::format("{}", config.value("tie_word_embeddings", false))}};
    keys.merge(rope_of(config));
    return keys;
  } catch (const json::exception& error) {
    throw InvalidArgument(fmt::format("it cannot be read: {}", error.what()));
  }
}

std::string hugging_face_index(const Manifest& manifest, std::int64_t bytes) {
  json files = json::object();
  for (const Manifest::File& file : manifest.files) {
    for (const std::string& tensor : file.tensors) {
      if (!tensor.starts_with(kOptimizerPrefix)) files[tensor] = file.name;
    }
  }
  return json{{"metadata", {{"total_size", bytes}}}, {"weight_map", std::move(files)}}.dump(1) + "\n";
}

}  // namespace periplus::train
