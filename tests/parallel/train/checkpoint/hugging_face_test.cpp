#include "parallel/train/checkpoint/hugging_face.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace periplus::train {
namespace {

using nlohmann::json;
using Texts = std::map<std::string, std::string>;

Texts all_keys_of(const ModelConfig& model) {
  Config config;
  config.model = model;
  const auto entries = key_values(config);
  return {entries.begin(), entries.end()};
}

Texts keys_of(const ModelConfig& model) {
  Texts keys = all_keys_of(model);
  std::erase_if(keys, [](const auto& entry) { return !entry.first.starts_with("model."); });
  return keys;
}

std::string written(const ModelConfig& model) {
  Manifest manifest;
  manifest.config = all_keys_of(model);
  return hugging_face_config(manifest, DType::f32);
}

struct Case {
  std::string type, pattern, read_back;
  bool qk_norm, qkv_bias;
};

TEST(HuggingFace, WhatIsWrittenIsReadAsTheSameModel) {
  for (const Case& c : {Case{"llama", "S", "S", false, false},
                        {"mistral", "W", "W", false, false},
                        {"qwen2", "S", "S", false, true},
                        {"qwen2", "W", "W", false, true},
                        {"qwen3", "S", "S", true, false},
                        {"qwen3", "SSW", "SSWSS", true, false},
                        {"qwen3", "WWWWWS", "W", true, false}}) {
    SCOPED_TRACE(c.type + " " + c.pattern);
    ModelConfig model{.pattern = c.pattern, .window = c.pattern == "S" ? 0 : 40};
    model.norm_epsilon = 1e-6, model.tie_embeddings = c.qk_norm, model.qk_norm = c.qk_norm, model.qkv_bias = c.qkv_bias;
    const std::string text = written(model);
    ASSERT_FALSE(text.empty());
    EXPECT_EQ(json::parse(text).at("model_type"), c.type);
    const Texts read = model_of_hugging_face(text);
    model.pattern = c.read_back;
    for (const auto& [key, value] : keys_of(model)) {
      const auto entry = read.find(key);
      EXPECT_EQ(entry == read.end() ? keys_of({}).at(key) : entry->second, value) << key;
    }
  }
}

TEST(HuggingFace, LayersOfQwenNameTheirKindForOldAndNewVersions) {
  ModelConfig model{.layers = 4, .pattern = "SSWW", .window = 40};
  model.qk_norm = true;
  const json config = json::parse(written(model));
  EXPECT_EQ(config.at("architectures"), json::array({"Qwen3ForCausalLM"}));
  EXPECT_EQ(config.at("sliding_window"), 41);
  EXPECT_EQ(config.at("use_sliding_window"), true);
  EXPECT_EQ(config.at("max_window_layers"), 2);
  EXPECT_EQ(config.at("layer_types"), json({"full_attention", "full_attention", "sliding_attention", "sliding_attention"}));
  model.pattern = "S", model.window = 0;
  const json whole = json::parse(written(model));
  EXPECT_EQ(whole.at("sliding_window"), nullptr);
  EXPECT_EQ(whole.at("use_sliding_window"), false);
}

TEST(HuggingFace, HasNoOtherModels) {
  ModelConfig model{.pattern = "SW", .window = 40};
  EXPECT_EQ(written(model), "");
  model.qk_norm = model.qkv_bias = true;
  EXPECT_EQ(written(model), "");
  model.qkv_bias = false;
  EXPECT_NE(written(model), "");
  model.pattern = "SD", model.window = 0;
  EXPECT_EQ(written(model), "");
}

}  // namespace
}  // namespace periplus::train
