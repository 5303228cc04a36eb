// What lets transformers read a checkpoint's folder: from_pretrained("RUN/checkpoints/step-XXXXXXXX").
#include "parallel/train/hugging_face.h"

#include <array>
#include <string_view>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "parallel/train/layer.h"
#include "runtime/error.h"

namespace periplus::train {

using nlohmann::json;

std::string hugging_face_config(const Manifest& manifest, DType dtype) {
  const auto text = [&](const std::string& key) -> const std::string& { return manifest.config.at(key); };
  const auto value = [&](const std::string& key) { return json::parse(text(key)); };
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
                 {"max_position_embeddings", value("data.context")},
                 {"bos_token_id", nullptr},
                 {"eos_token_id", document_end < 0 ? json() : json(document_end)},
                 {"torch_dtype", dtype == DType::f64 ? "float64" : "float32"}};
  if (window) config["sliding_window"] = value("model.window").get<std::int64_t>() + 1;  // it counts the token itself
  return config.dump(1) + "\n";
}

namespace {

/// Keys that have one value here, or are not there.
void require_computed(const json& config) {
  const std::array<std::pair<const char*, json>, 6> only = {{{"hidden_act", "silu"},
                                                             {"rms_norm_eps", kNormEpsilon},
                                                             {"attention_bias", false},
                                                             {"mlp_bias", false},
                                                             {"rope_scaling", nullptr},
                                                             {"pretraining_tp", 1}}};
  for (const auto& [key, value] : only) {
    const auto found = config.find(key);
    if (found != config.end() && *found != value)
      throw InvalidArgument(fmt::format("{} is {}, and only {} is computed here", key, found->dump(), value.dump()));
  }
}

}  // namespace

std::map<std::string, std::string> model_of_hugging_face(const std::string& text) {
  try {
    json config = json::parse(text);
    const std::string type = config.at("model_type");
    if (type != "llama" && type != "mistral")
      throw InvalidArgument(fmt::format("model_type is {}, and only llama and mistral are computed here", json(type).dump()));
    if (const auto rope = config.find("rope_parameters"); rope != config.end() && rope->is_object()) {  // since transformers 5
      config["rope_theta"] = rope->value("rope_theta", 10000.0);
      if (const std::string kind = rope->value("rope_type", "default"); kind != "default") config["rope_scaling"] = kind;
    }
    require_computed(config);
    const auto integer = [&](const char* key, std::int64_t otherwise = -1) {
      const bool given = config.contains(key) && !config[key].is_null();
      return given || otherwise < 0 ? config.at(key).get<std::int64_t>() : otherwise;
    };
    const std::int64_t heads = integer("num_attention_heads"), hidden = integer("hidden_size");
    if (heads < 1) throw InvalidArgument(fmt::format("num_attention_heads is {}", heads));
    const std::int64_t window = type == "mistral" ? integer("sliding_window", 0) : 0;  // it counts the token itself
    const auto number = [](std::int64_t value) { return fmt::format("{}", value); };
    return {{"model.layers", number(integer("num_hidden_layers"))},
            {"model.hidden", number(hidden)},
            {"model.heads", number(heads)},
            {"model.kv_heads", number(integer("num_key_value_heads", heads))},
            {"model.head_size", number(integer("head_dim", hidden / heads))},
            {"model.ffn", number(integer("intermediate_size"))},
            {"model.vocabulary", number(integer("vocab_size"))},
            {"model.pattern", window > 0 ? "W" : "S"},
            {"model.window", number(window > 0 ? window - 1 : 0)},
            {"model.tie_embeddings", fmt::format("{}", config.value("tie_word_embeddings", false))},
            {"model.rope_theta", fmt::format("{}", config.value("rope_theta", 10000.0))}};
  } catch (const json::exception& error) {
    throw InvalidArgument(fmt::format("it cannot be read: {}", error.what()));
  }
}

std::string hugging_face_index(const Manifest& manifest, std::int64_t bytes) {
  json files = json::object();
  for (const Manifest::File& file : manifest.files) {
    for (const std::string& tensor : file.tensors) {
      if (!tensor.starts_with("optimizer.")) files[tensor] = file.name;
    }
  }
  return json{{"metadata", {{"total_size", bytes}}}, {"weight_map", std::move(files)}}.dump(1) + "\n";
}

}  // namespace periplus::train
