#pragma once

#include <cstdint>
#include <string>

#include "parallel/train/checkpoint.h"
#include "runtime/dtype.h"

namespace periplus::train {

/// config.json of transformers for the model of manifest.config: Llama if all layers are S, Mistral if all are W; empty for
/// others, which it does not have. dtype: that of the checkpoint's weights.
std::string hugging_face_config(const Manifest& manifest, DType dtype);

/// model.safetensors.index.json: which of manifest.files holds which weight. bytes: of all weights together.
std::string hugging_face_index(const Manifest& manifest, std::int64_t bytes);

}  // namespace periplus::train
