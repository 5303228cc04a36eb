#include "parallel/train/checkpoint/initial_weights.h"

#include <algorithm>
#include <functional>
#include <limits>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "runtime/error.h"
#include "runtime/file.h"
#include "runtime/safetensors.h"
#include "tests/parallel/train/scenario.h"

namespace periplus::train {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

json llama_config() {
  return {{"model_type", "llama"},    {"num_hidden_layers", 2},  {"hidden_size", 16},    {"num_attention_heads", 4},
          {"num_key_value_heads", 2}, {"intermediate_size", 24}, {"vocab_size", 256},    {"tie_word_embeddings", true},
          {"rope_theta", 10000.0},    {"rms_norm_eps", 1e-5},    {"hidden_act", "silu"}, {"rope_scaling", nullptr},
          {"attention_bias", false}};
}

class InitialWeights : public testing::Test {
 protected:
  InitialWeights() {
    write_corpus(folder_ / "corpus");
    config_ = tiny_config(folder_.path());
    write_config(llama_config());
  }

  void write_config(const json& config) const { write_text(there() / "config.json", config.dump()); }
  fs::path there() const { return folder_ / "there"; }

  /// A tensor for each parameter, whose elements are value_of() it.
  std::map<std::string, Tensor> tensors(DType dtype) const {
    std::map<std::string, Tensor> made;
    const ParameterTable parameters(config_.model);
    for (const Parameter& parameter : parameters.all()) {
      Tensor tensor(parameter.shape, dtype, Memory());
      std::vector<float> values(static_cast<std::size_t>(parameter.elements));
      for (std::size_t i = 0; i < values.size(); ++i) values[i] = value_of(parameter, static_cast<std::int64_t>(i));
      copy(ConstTensorView(reinterpret_cast<const std::byte*>(values.data()), DType::f32, {parameter.elements}),
           tensor.view().reshape({parameter.elements}));
      made.emplace(parameter.name, std::move(tensor));
    }
    return made;
  }
  /// Exact in bf16.
  static float value_of(const Parameter& parameter, std::int64_t i) { return static_cast<float>((parameter.offset + i) % 251) / 64; }
  void write(const std::map<std::string, Tensor>& tensors, const std::string& file = "model.safetensors") const {
    NamedTensors named;
    for (const auto& [name, tensor] : tensors) named.emplace_back(name, tensor);
    write_safetensors(there() / file, named);
  }

  /// Loads on three ranks and compares every element; returns what is said.
  std::vector<std::string> load() const {
    std::vector<std::string> remarks;
    comm::run_thread_ranks(3, [&](const comm::Communicator& communicator) {
      const ParameterTable parameters(config_.model);
      ShardedAdamw optimizer(parameters, DType::bf16, communicator, Memory());
      const std::vector<std::string> said = load_initial_weights(there(), config_, optimizer, Stream());
      if (communicator.rank() == 0) remarks = said;
      const auto master = optimizer.master().span<float>();
      for (const Parameter& parameter : parameters.all()) {
        const Shards::Part part = optimizer.shards().held(communicator.rank(), parameter.offset, parameter.elements);
        for (std::int64_t i = 0; i < part.count; ++i) {
          ASSERT_EQ(master[static_cast<std::size_t>(part.offset + i)], value_of(parameter, part.begin - parameter.offset + i))
              << parameter.name << " " << i;
        }
      }
    });
    return remarks;
  }
  std::string refusal() const {
    try {
      load();
    } catch (const InvalidArgument& error) {
      return error.what();
    }
    return "";
  }
  void expect_refused(const std::string& part) const { EXPECT_NE(refusal().find(part), std::string::npos) << part << ": " << refusal(); }

  static void expect_refused_run(const Config& config, const std::string& part) {
    try {
      run_training(config, 3);
      FAIL() << "trained, which should fail for: " << part;
    } catch (const InvalidArgument& error) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  }

  TemporaryFolder folder_;
  Config config_;
};

TEST_F(InitialWeights, OfACheckpointGiveItsLossesOnAnyRanks) {
  for (const std::string pattern : {"S", "SD"}) {
    Config config = config_;
    config.model.pattern = pattern;
    if (pattern == "SD") config.parallel.layout = "zigzag";
    config.run.dtype = "f64";
    config.data.validation_paths = {(folder_ / "corpus/7.txt").string()};
    config.run.directory = (folder_ / ("trained" + pattern)).string();
    const Outcome trained = run_training(config, 2);
    config.run.initial_weights = checkpoint_folder(config, 8).string();
    config.run.directory = (folder_ / ("from" + pattern)).string();
    config.run.steps = 1;
    config.run.seed = 7;
    config.optimizer.learning_rate = 0;
    EXPECT_NEAR(run_training(config, 3).result.validation_loss.value(), trained.result.validation_loss.value(), 1e-12);
    // A run that goes on has its weights.
    fs::remove_all(folder_ / ("trained" + pattern));
    config.run.steps = 2;
    EXPECT_NEAR(run_training(config, 1, true).result.validation_loss.value(), trained.result.validation_loss.value(), 1e-12);
    config.run.initial_weights = (folder_ / ("from" + pattern)).string();
    config.run.directory = (folder_ / ("again" + pattern)).string();
    EXPECT_NEAR(run_training(config, 2).result.validation_loss.value(), trained.result.validation_loss.value(), 1e-12);
    const fs::path damaged = checkpoint_folder(config, 2) / "rank-00001-of-00002.safetensors";
    std::string bytes = read_file(damaged, 1 << 24);
    bytes.back() = static_cast<char>(bytes.back() ^ 1);
    write_text(damaged, bytes);
    config.run.initial_weights = config.run.directory;
    config.run.directory = (folder_ / "damaged").string();
    expect_refused_run(config, "the digest of rank-00001-of-00002.safetensors does not match");
    config.model.ffn = 32;
    config.run.initial_weights = (folder_ / ("from" + pattern)).string();
    config.run.directory = (folder_ / "other").string();
    expect_refused_run(config, "set model.ffn=24");
  }
}

TEST_F(InitialWeights, OfTransformersAreReadFromOneFileOrSeveral) {
  for (const DType dtype : {DType::bf16, DType::f16, DType::f32, DType::f64}) {
    write(tensors(dtype));
    EXPECT_EQ(load(), std::vector<std::string>());
  }
  fs::remove(there() / "model.safetensors");
  std::map<std::string, Tensor> all = tensors(DType::f32), first;
  json index;
  for (const auto& [name, tensor] : all) index["weight_map"][name] = "b.safetensors";
  for (const std::string name : {"model.norm.weight", "model.layers.1.mlp.up_proj.weight"}) {
    first.insert(all.extract(name));
    index["weight_map"][name] = "a.safetensors";
  }
  write(first, "a.safetensors");
  write(all, "b.safetensors");
  write_text(there() / "model.safetensors.index.json", index.dump());
  EXPECT_EQ(load(), std::vector<std::string>());
  index["weight_map"]["model.norm.weight"] = "b.safetensors";
  write_text(there() / "model.safetensors.index.json", index.dump());
  expect_refused("b.safetensors does not hold tensor model.norm.weight");
  index["weight_map"]["model.norm.weight"] = "../a.safetensors";
  write_text(there() / "model.safetensors.index.json", index.dump());
  expect_refused("../a.safetensors lies outside the folder");
  write_text(there() / "model.safetensors.index.json", "{}");
  expect_refused("has no weight_map");
  write(tensors(DType::f32));  // comes first, as in transformers
  EXPECT_EQ(load(), std::vector<std::string>());
}

TEST_F(InitialWeights, MayHaveAnotherRotaryBaseAndOtherWindows) {
  write(tensors(DType::f32));
  json config = llama_config();
  config.erase("rope_theta");
  config["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 500000.0}};
  write_config(config);
  EXPECT_EQ(load(), std::vector<std::string>{"model.rope_theta is 500000 there and 10000 here"});
  config = llama_config();
  config["rope_scaling"] = {{"factor", 8.0}, {"rope_type", "llama3"}, {"original_max_position_embeddings", 64}};
  write_config(config);
  EXPECT_EQ(load().size(), 3u);
  config = llama_config();
  config["max_position_embeddings"] = 32768;
  config["rope_scaling"] = {{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 8192}, {"beta_fast", 16}};
  write_config(config);
  const std::vector<std::string> remarks = {
      "model.rope_factor is 4 there and 0 here", "model.rope_original_context is 8192 there and 0 here",
      "model.rope_scaling is yarn there and none here", "model.rope_turns is [1, 16] there and [] here"};
  EXPECT_EQ(load(), remarks);
  config["rope_parameters"] = nullptr;
  write_config(config);
  EXPECT_EQ(load(), remarks);
  // transformers 5 takes the factor as it is.
  config["rope_parameters"] = config["rope_scaling"], config["rope_scaling"] = nullptr, config["max_position_embeddings"] = 8192;
  write_config(config);
  EXPECT_EQ(load(), remarks);
  config = llama_config();
  config["model_type"] = "mistral", config["sliding_window"] = 33;
  write_config(config);
  EXPECT_EQ(load(), (std::vector<std::string>{"model.pattern is W there and S here", "model.window is 32 there and 0 here"}));
  config.erase("sliding_window");
  write_config(config);
  EXPECT_EQ(load(), (std::vector<std::string>{"model.pattern is W there and S here", "model.window is 4095 there and 0 here"}));
  config["sliding_window"] = nullptr;
  write_config(config);
  EXPECT_EQ(load(), std::vector<std::string>());
  config["sliding_window"] = 33;
  write_config(config);
  config_.model.pattern = "W", config_.model.window = 32;
  EXPECT_EQ(load(), std::vector<std::string>());
}

TEST_F(InitialWeights, OfQwen3HaveNormsOfHeadsAndWindowsWhereItHas) {
  config_.model.qk_norm = true;
  config_.model.norm_epsilon = 1e-6;
  write(tensors(DType::f32));
  json config = llama_config();
  config.update({{"model_type", "qwen3"}, {"head_dim", 4}, {"rms_norm_eps", 1e-6}, {"sliding_window", 33}, {"max_window_layers", 1}});
  write_config(config);
  EXPECT_EQ(load(), std::vector<std::string>());
  config["use_sliding_window"] = true;
  write_config(config);
  EXPECT_EQ(load(), (std::vector<std::string>{"model.pattern is SW there and S here", "model.window is 32 there and 0 here"}));
  config["layer_types"] = {"sliding_attention", "full_attention"};
  write_config(config);
  config_.model.pattern = "WS", config_.model.window = 32;
  EXPECT_EQ(load(), std::vector<std::string>());
  config["layer_types"] = nullptr;
  config.erase("max_window_layers");
  write_config(config);
  EXPECT_EQ(load(), (std::vector<std::string>{"model.pattern is S there and WS here", "model.window is 0 there and 32 here"}));
  config_.model.pattern = "W";
  for (const int first : {0, -1}) {
    config["max_window_layers"] = first;
    write_config(config);
    EXPECT_EQ(load(), std::vector<std::string>());
  }
  config["sliding_window"] = nullptr;
  write_config(config);
  EXPECT_EQ(load(), (std::vector<std::string>{"model.pattern is S there and W here", "model.window is 0 there and 32 here"}));
}

TEST_F(InitialWeights, OfQwen2HaveBiases) {
  config_.model.qkv_bias = true;
  write(tensors(DType::f32));
  json config = llama_config();
  config.update({{"model_type", "qwen2"}, {"use_sliding_window", false}, {"sliding_window", 4096}, {"max_window_layers", 1}});
  write_config(config);
  EXPECT_EQ(load(), std::vector<std::string>());
}

TEST_F(InitialWeights, OfOtherModelsAreRefused) {
  const std::vector<std::pair<std::string, std::function<void(json&)>>> configs = {
      {"is of another model than the configured one; set model.head_size=8 model.heads=2", [](json& c) { c["num_attention_heads"] = 2; }},
      {"set model.layers=3", [](json& c) { c["num_hidden_layers"] = 3; }},
      {"set model.tie_embeddings=false", [](json& c) { c.erase("tie_word_embeddings"); }},
      {R"(model_type is "gemma", and only llama, mistral, qwen2 and qwen3)", [](json& c) { c["model_type"] = "gemma"; }},
      {"it cannot be read",
       [](json& c) {
         c["rope_scaling"] = {{"factor", 8.0}, {"rope_type", "llama3"}};
       }},
      {R"(rope_parameters is {"rope_type":"dynamic"}, and only linear, llama3 and yarn)",
       [](json& c) {
         c["rope_parameters"] = {{"rope_type", "dynamic"}};
       }},
      {"mscale is not computed here",
       [](json& c) {
         c["rope_scaling"] = {{"factor", 8.0}, {"rope_type", "yarn"}, {"mscale", 0.707}};
       }},
      {"max_position_embeddings is 4096, which some versions of transformers divide by the original one for a factor; make it 8192;",
       [](json& c) {
         c["max_position_embeddings"] = 4096;
         c["rope_scaling"] = {{"factor", 8.0}, {"rope_type", "yarn"}, {"original_max_position_embeddings", 1024}};
       }},
      {"rope_scaling and rope_parameters are both given and differ; leave one of them out",
       [](json& c) {
         c["rope_scaling"] = {{"factor", 8.0}, {"rope_type", "linear"}};
         c["rope_parameters"] = {{"rope_theta", 10000.0}, {"rope_type", "default"}};
       }},
      {R"(quantization_config is {"quant_method":"fp8"}, and only null is computed here)",
       [](json& c) {
         c["quantization_config"] = {{"quant_method", "fp8"}};
       }},
      {"set model.norm_epsilon=1e-06", [](json& c) { c["rms_norm_eps"] = 1e-6; }},
      {"set model.norm_epsilon=1e-06", [](json& c) { c.erase("rms_norm_eps"); }},
      {"set model.head_size=128 model.qk_norm=true", [](json& c) { c["model_type"] = "qwen3"; }},
      {"set model.qkv_bias=true", [](json& c) { c["model_type"] = "qwen2"; }},
      {R"(layer_types has "chunked_attention", which is not computed here)",
       [](json& c) {
         c["model_type"] = "qwen3", c["use_sliding_window"] = true;
         c["layer_types"] = {"full_attention", "chunked_attention"};
       }},
      {R"(layer_types has "sliding_attention", but no sliding_window is in use; set use_sliding_window and sliding_window in config.json)",
       [](json& c) {
         c["model_type"] = "qwen3", c["use_sliding_window"] = false;
         c["layer_types"] = {"full_attention", "sliding_attention"};
       }},
      {"layer_types has 1 entries for 2 layers",
       [](json& c) {
         c["model_type"] = "qwen3", c["use_sliding_window"] = true;
         c["layer_types"] = {"full_attention"};
       }},
      {"num_hidden_layers 4611686018427387904", [](json& c) { c["num_hidden_layers"] = std::int64_t{1} << 62; }},
      {"attention_bias is true", [](json& c) { c["attention_bias"] = true; }},
      {"hidden_act is \"gelu\"", [](json& c) { c["hidden_act"] = "gelu"; }},
      {"it cannot be read", [](json& c) { c.erase("hidden_size"); }},
      {"it cannot be read", [](json& c) { c["hidden_size"] = "wide"; }},
      {"hidden_size is 16.5; it must be a whole number", [](json& c) { c["hidden_size"] = 16.5; }},
      {"vocab_size is 9223372036854775808; it must be a whole number", [](json& c) { c["vocab_size"] = std::uint64_t{1} << 63; }},
      {"hidden_size is -16, num_attention_heads 4 and num_hidden_layers 2", [](json& c) { c["hidden_size"] = -16; }},
      {"hidden_size is 16, num_attention_heads 0", [](json& c) { c["num_attention_heads"] = 0; }},
      {"rope_scaling is \"linear\", and no object", [](json& c) { c["rope_scaling"] = "linear"; }},
      {"full_attention is not computed here",
       [](json& c) {
         c["rope_parameters"] = {{"full_attention", {{"rope_type", "linear"}, {"factor", 4.0}}}};
       }},
      {"original_max_position_embeddings is 32.5; it must be a whole number", [](json& c) {
         c["rope_scaling"] = {{"factor", 8.0}, {"rope_type", "llama3"}, {"original_max_position_embeddings", 32.5}};
       }}};
  write(tensors(DType::f32));
  for (const auto& [part, spoil] : configs) {
    json config = llama_config();
    spoil(config);
    write_config(config);
    expect_refused(part);
  }
  write_text(there() / "config.json", "{");
  expect_refused("config.json: it cannot be read");
  fs::remove(there() / "config.json");
  expect_refused("it holds neither a checkpoint (manifest.json) nor a model of transformers (config.json)");
}

TEST_F(InitialWeights, WithOtherTensorsAreRefused) {
  expect_refused("neither model.safetensors nor model.safetensors.index.json;");
  write_text(there() / "pytorch_model.bin", "");
  expect_refused("pytorch_model.bin is not read here; save the model with safe_serialization=True");
  std::map<std::string, Tensor> all = tensors(DType::f32);
  all["model.layers.0.self_attn.rotary_emb.inv_freq"] = Tensor({2}, DType::f32, Memory());
  write(all);
  EXPECT_EQ(refusal(), "");
  all["model.layers.0.self_attn.q_proj.bias"] = Tensor({16}, DType::f32, Memory());
  write(all);
  expect_refused("tensor model.layers.0.self_attn.q_proj.bias is of no layer");
  all = tensors(DType::f32);
  all["lm_head.weight"] = std::move(tensors(DType::f32).at("model.embed_tokens.weight"));
  write(all);
  EXPECT_EQ(refusal(), "");
  all["lm_head.weight"].view().span<float>()[5] = 1000;
  write(all);
  expect_refused("lm_head.weight is not model.embed_tokens.weight, and the model is one that ties them");
  all = tensors(DType::f32);
  all["model.norm.weight"].view().span<float>()[15] = std::numeric_limits<float>::quiet_NaN();
  write(all);
  expect_refused("tensor model.norm.weight has values that are not finite in f32");
  all["model.norm.weight"] = Tensor({17}, DType::f32, Memory());
  write(all);
  expect_refused("tensor model.norm.weight is f32 [17], and [16] of a floating-point type is needed");
  all["model.norm.weight"] = Tensor({16}, DType::i32, Memory());
  write(all);
  expect_refused("tensor model.norm.weight is i32 [16]");
  all.erase("model.norm.weight");
  write(all);
  expect_refused("there is no tensor model.norm.weight");
}

}  // namespace
}  // namespace periplus::train
