#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "parallel/train/config.h"
#include "parallel/train/optimizer.h"

namespace periplus::train {

/// The model.* keys of a folder of trained weights, as key_values() writes them. InvalidArgument if it is none.
std::map<std::string, std::string> model_of_weights(const std::filesystem::path& folder);

/// Master weights := those of a trained model, of any floating-point type; moments := 0. `folder` is a checkpoint or a run with
/// checkpoints, of the newest of which nothing but the weights counts, or what transformers saved of a Llama, Mistral, Qwen2 or Qwen3
/// model: config.json, and model.safetensors or its index. Each rank reads its shard only; of a checkpoint all ranks together read all
/// files, for their digests. Returns sentences about what differs from that model but may: rotary frequencies, and which layers have which
/// window. Errors: InvalidArgument, on all ranks, unless it is the configured model tensor by tensor, of finite values. Collective.
std::vector<std::string> load_initial_weights(const std::filesystem::path& folder, const Config& config, ShardedAdamw& optimizer,
                                              StreamView stream);

}  // namespace periplus::train
