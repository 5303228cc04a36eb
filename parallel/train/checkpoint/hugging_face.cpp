// What lets transformers' from_pretrained() read the folder of a checkpoint, and us one that transformers saved.
#include "parallel/train/checkpoint/hugging_face.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "parallel/train/model/rotary.h"
#include "runtime/error.h"

namespace periplus::train {

using nlohmann::json;
using Texts = std::map<std::string, std::string>;

namespace {

constexpr const char *kContext = "max_position_embeddings", *kOriginalContext = "original_max_position_embeddings";
constexpr const char *kWhole = "full_attention", *kWindow = "sliding_attention";  // of layer_types

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

struct Family {
  std::string_view type, causal_lm;  ///< As model_type and architectures name it.
  std::string_view letters;          ///< Kinds that its layers can be, each for itself.
  bool qk_norm, qkv_bias;
};
constexpr std::array<Family, 4> kFamilies = {{{"llama", "LlamaForCausalLM", "S", false, false},
                                              {"mistral", "MistralForCausalLM", "W", false, false},
                                              {"qwen2", "Qwen2ForCausalLM", "SW", false, true},
                                              {"qwen3", "Qwen3ForCausalLM", "SW", true, false}}};

/// sliding_window, which counts the token itself, and the keys that belong to it.
json windows_of(const Family& family, const std::string& letters, std::int64_t window) {
  if (family.letters == "S") return json::object();
  const std::size_t first = std::min(letters.find('W'), letters.size());
  const bool any = first < letters.size();
  json keys = {{"sliding_window", any ? json(window + 1) : json()}};
  if (family.letters == "W") return keys;
  keys["use_sliding_window"] = any;
  keys["max_window_layers"] = first;  // all that versions before layer_types know
  for (const char letter : letters) keys["layer_types"].push_back(letter == 'W' ? kWindow : kWhole);
  return keys;
}

}  // namespace

std::string hugging_face_config(const Manifest& manifest, DType dtype) {
  const auto text = [&](const std::string& key) -> const std::string& {
    const auto entry = manifest.config.find(key);
    if (entry != manifest.config.end()) return entry->second;
    throw InvalidArgument(fmt::format("checkpoint: the manifest's config lacks {}; fill it with key_values() of the run", key));
  };
  const auto value = [&](const std::string& key) { return json::parse(text(key)); };
  const std::string &scaling = text("model.rope_scaling"), &pattern = text("model.pattern");
  std::string letters;
  for (std::size_t layer = 0, layers = value("model.layers"); layer < layers; ++layer) letters += pattern[layer % pattern.size()];
  const auto family = std::ranges::find_if(kFamilies, [&](const Family& it) {
    return letters.find_first_not_of(it.letters) == letters.npos && value("model.qk_norm") == it.qk_norm &&
           value("model.qkv_bias") == it.qkv_bias;
  });
  if (family == kFamilies.end()) return {};
  const std::int64_t document_end = value("data.document_end");
  json config = {{"architectures", json::array({family->causal_lm})},
                 {"model_type", family->type},
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
                 {"rms_norm_eps", value("model.norm_epsilon")},
                 {"rope_scaling",
                  rope_scaling_of(scaling, value("model.rope_factor"), value("model.rope_original_context"), value("model.rope_turns"))},
                 {kContext, value(scaling == "yarn" ? "model.rope_original_context" : "data.context")},
                 {"bos_token_id", nullptr},
                 {"eos_token_id", document_end < 0 ? json() : json(document_end)},
                 {"torch_dtype", dtype == DType::f64 ? "float64" : "float32"}};
  config.update(windows_of(*family, letters, value("model.window")));
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
                                         {"attention_bias", false, false},
                                         {"mlp_bias", false, false},
                                         {"pretraining_tp", 1, 1},
                                         {"quantization_config", nullptr, nullptr}}};
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

/// Where rotary positions are described: before transformers 5 in rope_scaling, since then in rope_parameters. If it finds both it
/// takes the first, without the base in the other.
std::string rope_key(const json& config) {
  const json scaling = config.value("rope_scaling", json()), parameters = config.value("rope_parameters", json());
  if (!scaling.is_null() && !parameters.is_null() && scaling != parameters)
    throw InvalidArgument("rope_scaling and rope_parameters are both given and differ; leave one of them out");
  return parameters.is_null() ? "rope_scaling" : "rope_parameters";
}

/// model.rope_* keys.
Texts rope_of(const json& config) {
  const std::string from = rope_key(config);
  json rope = config.value(from, json());
  if (rope.is_null()) rope = json::object();
  const auto refuse = [&](const std::string& why) { return InvalidArgument(fmt::format("{} is {}, and {}", from, rope.dump(), why)); };
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
  const double context = factor * static_cast<double>(original);
  if (scaling == "yarn" && has_original && from == "rope_scaling" && context != config.at(kContext).get<double>())
    throw refuse(fmt::format("{} is {}, which some versions of transformers divide by the original one for a factor; make it {}", kContext,
                             config.at(kContext).dump(), context));
  const std::vector<double> defaults = default_rope_turns(scaling);
  const std::vector<double> turns = {rope.value(low, defaults[0]), rope.value(high, defaults[1])};
  keys["model.rope_original_context"] = fmt::format("{}", original);
  if (turns != defaults) keys["model.rope_turns"] = fmt::format("[{}, {}]", turns[0], turns[1]);
  return keys;
}

/// config[key], or what transformers takes if it is left out or null.
std::int64_t whole_number(const json& config, const char* key, std::int64_t otherwise) {
  const bool given = config.contains(key) && !config.at(key).is_null();
  return given ? whole_number(config, key) : otherwise;
}

/// A letter a layer; W only if there is a window.
std::string letters_of(const json& config, const Family& family, std::size_t layers, bool window) {
  if (family.letters.size() == 1) return std::string(layers, window ? family.letters[0] : 'S');
  window = window && config.value("use_sliding_window", false);
  const std::int64_t whole = window ? std::max<std::int64_t>(whole_number(config, "max_window_layers", 28), 0) : kMostLayers;
  std::string letters(std::min(layers, static_cast<std::size_t>(whole)), 'S');
  letters.resize(layers, 'W');
  const json types = config.value("layer_types", json());
  if (types.is_null()) return letters;
  if (types.size() != layers) throw InvalidArgument(fmt::format("layer_types has {} entries for {} layers", types.size(), layers));
  for (std::size_t layer = 0; layer < layers; ++layer) {
    if (types[layer] != kWhole && types[layer] != kWindow)
      throw InvalidArgument(fmt::format("layer_types has {}, which is not computed here", types[layer].dump()));
    if (types[layer] == kWindow && !window)
      throw InvalidArgument(
          fmt::format("layer_types has {}, but no sliding_window is in use; set use_sliding_window and sliding_window "
                      "in config.json, or make it {}",
                      types[layer].dump(), json(kWhole).dump()));
    letters[layer] = types[layer] == kWindow ? 'W' : 'S';
  }
  return letters;
}

/// model.pattern and model.window.
Texts pattern_of(const json& config, const Family& family, std::int64_t layers) {
  // null is no window, and no key is the default of transformers.
  const std::int64_t window = whole_number(config, "sliding_window", config.contains("sliding_window") ? 0 : 4096);
  const std::string letters = letters_of(config, family, static_cast<std::size_t>(layers), window > 0);
  const bool same = letters.find_first_not_of(letters[0]) == letters.npos, windows = letters.find('W') != letters.npos;
  return {{"model.pattern", same ? letters.substr(0, 1) : letters}, {"model.window", fmt::format("{}", windows ? window - 1 : 0)}};
}

}  // namespace

std::map<std::string, std::string> model_of_hugging_face(const std::string& text) {
  try {
    const json config = json::parse(text);
    const std::string type = config.at("model_type");
    const auto family = std::ranges::find(kFamilies, type, &Family::type);
    if (family == kFamilies.end()) {
      throw InvalidArgument(fmt::format("model_type is {}, and only llama, mistral, qwen2 and qwen3 are computed here", json(type).dump()));
    }
    require_computed(config);
    const std::int64_t layers = whole_number(config, "num_hidden_layers"), heads = whole_number(config, "num_attention_heads"),
                       hidden = whole_number(config, "hidden_size");
    if (heads < 1 || hidden < 1 || layers < 1 || layers > kMostLayers)
      throw InvalidArgument(fmt::format("hidden_size is {}, num_attention_heads {} and num_hidden_layers {}", hidden, heads, layers));
    const auto number = [](auto value) { return fmt::format("{}", value); };
    Texts keys = {{"model.layers", number(layers)},
                  {"model.hidden", number(hidden)},
                  {"model.heads", number(heads)},
                  {"model.kv_heads", number(whole_number(config, "num_key_value_heads", heads))},
                  {"model.head_size", number(whole_number(config, "head_dim", type == "qwen3" ? 128 : hidden / heads))},
                  {"model.ffn", number(whole_number(config, "intermediate_size"))},
                  {"model.vocabulary", number(whole_number(config, "vocab_size"))},
                  {"model.tie_embeddings", number(config.value("tie_word_embeddings", false))},
                  {"model.norm_epsilon", number(config.value("rms_norm_eps", 1e-6))},
                  {"model.qk_norm", number(family->qk_norm)},
                  {"model.qkv_bias", number(family->qkv_bias)}};
    keys.merge(pattern_of(config, *family, layers));
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
