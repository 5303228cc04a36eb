#include "parallel/train/config.h"

#include <functional>
#include <limits>
#include <set>

#include <gtest/gtest.h>

#include "runtime/error.h"

namespace periplus::train {
namespace {

Config valid() {
  Config config;
  config.data.paths = {"/usr/include"};
  return config;
}

void set_linear(Config& config, const std::string& pattern, const std::string& gate) {
  config.model.pattern = pattern;
  config.model.gate = gate;
  config.parallel.layout = "zigzag";
}

TEST(Config, AcceptsEveryKindOfLayer) {
  for (const char* gate : {"basic", "retention", "lightning", "gla", "mamba2"}) {
    for (const char* layout : {"contiguous", "zigzag"}) {
      Config config = valid();
      set_linear(config, "SLWD", gate);
      config.model.window = 100;
      config.model.conv_width = 3;
      config.parallel.layout = layout;
      config.parallel.linear.strategy = "all_scan";
      EXPECT_NO_THROW(check(config));
    }
  }
}

TEST(Config, DefaultsNeedOnlyData) {
  EXPECT_NO_THROW(check(valid()));
  EXPECT_THROW(check(Config{}), InvalidArgument);
}

TEST(Config, RefusesWhatCannotBeTrainedAndNamesTheKey) {
  const std::vector<std::pair<std::string, std::function<void(Config&)>>> mistakes = {
      {"run.validate_every is 5; it must be left out: data.validation_paths names no text", [](Config& c) { c.run.validate_every = 5; }},
      {"data.validation_rows is 5; it must be left out", [](Config& c) { c.data.validation_rows = 5; }},
      {"data.validation_rows is -1",
       [](Config& c) {
         c.data.validation_paths = {"/usr/include/linux"};
         c.data.validation_rows = -1;
       }},
      {"u8, u16, u32", [](Config& c) { c.data.token_type = "u64"; }},
      {"data.document_end is 256; it must be -1 (a file is a document) or a token id below 256",
       [](Config& c) {
         c.model.vocabulary = 1000;
         c.data.document_end = 256;
       }},
      {"data.document_end is -2", [](Config& c) { c.data.document_end = -2; }},
      {"token id below 100",
       [](Config& c) {
         c.model.vocabulary = 100;
         c.data.token_type = "u16";
         c.data.document_end = 100;
       }},
      {"model.rope_factor is 4; it must be left out with model.rope_scaling none", [](Config& c) { c.model.rope_factor = 4; }},
      {"model.rope_factor is 0; it must be a number of at least 1 with model.rope_scaling linear",
       [](Config& c) { c.model.rope_scaling = "linear"; }},
      {"none, linear, llama3, yarn", [](Config& c) { c.model.rope_scaling = "dynamic"; }},
      {"model.rope_turns is [1, 4]; it must be left out with model.rope_scaling linear",
       [](Config& c) {
         c.model.rope_scaling = "linear", c.model.rope_factor = 2;
         c.model.rope_turns = {1, 4};
       }},
      {"model.rope_original_context is 0; it must be 1 to", [](Config& c) { c.model.rope_scaling = "yarn", c.model.rope_factor = 2; }},
      {"model.rope_turns is [4, 1]; it must be two rising positive numbers",
       [](Config& c) {
         c.model.rope_scaling = "llama3", c.model.rope_factor = 2, c.model.rope_original_context = 4096;
         c.model.rope_turns = {4, 1};
       }},
      {"parallel.zero_stage is 4; it must be 1, 2 or 3", [](Config& c) { c.parallel.zero_stage = 4; }},
      {"model.norm_epsilon is 0; it must be a positive number", [](Config& c) { c.model.norm_epsilon = 0; }},
      {"model.qk_norm is true; it must be left out: model.pattern 'D' has neither S nor W layers",
       [](Config& c) {
         set_linear(c, "D", "");
         c.model.qk_norm = true;
       }},
      {"model.layers", [](Config& c) { c.model.layers = 0; }},
      {"model.hidden", [](Config& c) { c.model.hidden = -3; }},
      {"model.kv_heads", [](Config& c) { c.model.kv_heads = 3; }},
      {"model.head_size", [](Config& c) { c.model.head_size = 33; }},
      {"model.ffn", [](Config& c) { c.model.ffn = std::int64_t{1} << 60; }},
      {"model.vocabulary", [](Config& c) { c.model.vocabulary = 255; }},
      {"model.pattern", [](Config& c) { c.model.pattern = ""; }},
      {"S = softmax attention", [](Config& c) { c.model.pattern = "SX"; }},
      {"D = gated delta rule", [](Config& c) { c.model.pattern = "S S"; }},
      {"model.window is 0; it must be 1 to", [](Config& c) { c.model.pattern = "WS"; }},
      {"model.window is 9; it must be left out", [](Config& c) { c.model.window = 9; }},
      {"basic, retention, lightning, gla, mamba2", [](Config& c) { set_linear(c, "SL", ""); }},
      {"model.gate is 'sigmoid'", [](Config& c) { set_linear(c, "SL", "sigmoid"); }},
      {"model.gate is gla; it must be left out", [](Config& c) { set_linear(c, "SD", "gla"); }},
      {"model.gate is gla; it must be left out", [](Config& c) { set_linear(c, "SSSSSL", "gla"); }},
      {"model.conv_width is 4; it must be left out",
       [](Config& c) {
         set_linear(c, "L", "gla");
         c.model.conv_width = 4;
       }},
      {"model.conv_width is 1; it must be 2 to 64",
       [](Config& c) {
         set_linear(c, "D", "");
         c.model.conv_width = 1;
       }},
      {"document_zigzag, but model.pattern 'SL' has L layers",
       [](Config& c) {
         set_linear(c, "SL", "gla");
         c.parallel.layout = "document_zigzag";
       }},
      {"set parallel.layout to zigzag",
       [](Config& c) {
         set_linear(c, "D", "");
         c.parallel.layout = "balanced";
       }},
      {"parallel.linear_strategy is lasp; it must be left out", [](Config& c) { c.parallel.linear.strategy = "lasp"; }},
      {"parallel.keep_transitions is true; it must be left out",
       [](Config& c) {
         set_linear(c, "SL", "gla");
         c.parallel.linear.keep_transitions = true;
       }},
      {"only D layers with parallel.linear_strategy lasp2",
       [](Config& c) {
         set_linear(c, "SD", "");
         c.parallel.layout = "zigzag";
         c.parallel.linear = {.strategy = "lasp", .keep_transitions = true};
       }},
      {"lasp2, lasp, all_scan", [](Config& c) { c.parallel.linear.strategy = "ring"; }},
      {"model.rope_theta", [](Config& c) { c.model.rope_theta = 0; }},
      {"data.context", [](Config& c) { c.data.context = 1; }},
      {"best_fit, concat", [](Config& c) { c.data.packing = "tight"; }},
      {"parallel.strategy", [](Config& c) { c.parallel.attention.strategy = "helix"; }},
      {"document_zigzag", [](Config& c) { c.parallel.layout = "diagonal"; }},
      {"parallel.layout", [](Config& c) { c.parallel.layout = "custom"; }},
      {"optimizer.learning_rate", [](Config& c) { c.optimizer.learning_rate = std::numeric_limits<double>::quiet_NaN(); }},
      {"optimizer.warmup_steps", [](Config& c) { c.optimizer.warmup_steps = -1; }},
      {"optimizer.clip_norm", [](Config& c) { c.optimizer.clip_norm = -1; }},
      {"optimizer.betas", [](Config& c) { c.optimizer.betas = {0.9}; }},
      {"optimizer.betas",
       [](Config& c) {
         c.optimizer.betas = {0.9, 1.0};
       }},
      {"run.steps", [](Config& c) { c.run.steps = 0; }},
      {"run.directory", [](Config& c) { c.run.directory = ""; }},
      {"run.dtype", [](Config& c) { c.run.dtype = "f16"; }},
      {"run.recompute", [](Config& c) { c.run.recompute = "all"; }},
      {"run.checkpoint_every", [](Config& c) { c.run.checkpoint_every = -1; }},
      {"run.deadline_seconds", [](Config& c) { c.run.deadline_seconds = 0; }},
  };
  for (const auto& [expected, spoil] : mistakes) {
    Config config = valid();
    spoil(config);
    try {
      check(config);
      ADD_FAILURE() << "accepted a wrong " << expected;
    } catch (const InvalidArgument& error) {
      EXPECT_NE(std::string(error.what()).find(expected), std::string::npos) << error.what();
    }
  }
}

TEST(Config, KeyValuesNameEveryKeyOnceAndResolveTheType) {
  Config config = valid();
  config.run.dtype = "f64";
  EXPECT_EQ(storage_dtype(config.run), DType::f64);
  std::set<std::string> keys;
  for (const auto& [key, value] : key_values(config)) {
    EXPECT_TRUE(keys.insert(key).second) << key;
    EXPECT_TRUE(key != "run.dtype" || value == "f64") << value;
  }
  EXPECT_EQ(keys.size(), 57u);
}

}  // namespace
}  // namespace periplus::train
