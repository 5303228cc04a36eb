#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "parallel/train/checkpoint/checkpoint.h"
#include "runtime/dtype.h"

namespace periplus::train {

/// config.json of transformers for the model of manifest.config: Llama if all layers are S, Mistral if all are W, Qwen2 or Qwen3
/// if all are either and have qkv_bias or qk_norm; empty for others, which it does not have. dtype: that of the checkpoint's weights.
std::string hugging_face_config(const Manifest& manifest, DType dtype);

/// The model.* keys of such a config.json, as key_values() writes them. InvalidArgument saying which value stands for something that is not
/// computed here.
std::map<std::string, std::string> model_of_hugging_face(const std::string& config);

/// model.safetensors.index.json: which of manifest.files holds which weight. bytes: of all weights together.
std::string hugging_face_index(const Manifest& manifest, std::int64_t bytes);

}  // namespace periplus::train
