// What lets transformers read a checkpoint's folder: from_pretrained("RUN/checkpoints/step-XXXXXXXX").
#include "parallel/train/hugging_face.h"

#include <nlohmann/json.hpp>

#include "parallel/train/layer.h"

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
