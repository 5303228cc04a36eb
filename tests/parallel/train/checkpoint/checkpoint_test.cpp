#include "parallel/train/checkpoint/checkpoint.h"

#include <algorithm>
#include <cmath>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "runtime/error.h"
#include "runtime/file.h"
#include "runtime/safetensors.h"
#include "tests/parallel/train/scenario.h"

namespace periplus::train {
namespace {

namespace fs = std::filesystem;

class Checkpoint : public testing::Test {
 protected:
  Checkpoint() { write_corpus(folder_ / "corpus"); }

  Config config_in(const std::string& run, const std::string& dtype = "f32") const {
    Config config = tiny_config(folder_.path());
    config.run.directory = (folder_ / run).string();
    config.run.dtype = dtype;
    return config;
  }

  TemporaryFolder folder_;
};

/// The message with which resuming is refused.
std::string refusal(const Config& config, int ranks) {
  try {
    run_training(config, ranks, true);
  } catch (const InvalidArgument& error) {
    return error.what();
  } catch (const std::exception& error) {
    ADD_FAILURE() << "wrong kind of error: " << error.what();
    return {};
  }
  ADD_FAILURE() << "accepted";
  return {};
}

bool mentions(const std::string& message, const std::string& part) { return message.find(part) != std::string::npos; }

TEST_F(Checkpoint, HybridsResumeBitForBit) {
  for (const std::string gate : {"gla", "mamba2"}) {
    for (const int ranks : {1, 3}) {
      SCOPED_TRACE(gate + " ranks " + std::to_string(ranks));
      const auto hybrid_in = [&](const std::string& run) {
        Config config = config_in(gate + std::to_string(ranks) + run, "bf16");
        config.model.layers = 4;
        config.model.pattern = "SWLD";
        config.model.window = 8;
        config.model.gate = gate;
        config.parallel.layout = "zigzag";
        return config;
      };
      const std::vector<double> whole = run_training(hybrid_in("whole"), ranks).losses();
      std::vector<double> losses = run_training(hybrid_in("parts"), ranks, false, 4).losses();
      ASSERT_LT(losses.size(), whole.size());
      for (const double loss : run_training(hybrid_in("parts"), ranks, true).losses()) losses.push_back(loss);
      EXPECT_EQ(losses, whole);
    }
  }
}

TEST_F(Checkpoint, ResumingAtTheSameRanksContinuesBitForBit) {
  for (const std::string dtype : {"f32", "bf16", "f64"}) {
    for (const int ranks : {1, 2, 3}) {
      SCOPED_TRACE(dtype + " ranks " + std::to_string(ranks));
      const std::string name = dtype + std::to_string(ranks);
      const std::vector<double> whole = run_training(config_in(name + "whole", dtype), ranks).losses();
      const Config config = config_in(name, dtype);
      std::vector<double> losses = run_training(config, ranks, false, 4).losses();
      ASSERT_LT(losses.size(), whole.size());
      for (const double loss : run_training(config, ranks, true).losses()) losses.push_back(loss);
      EXPECT_EQ(losses, whole);
    }
  }
}

TEST_F(Checkpoint, ResumingAtOtherRanksContinuesWithinRounding) {
  const std::vector<double> whole = run_training(config_in("whole"), 2).losses();
  for (const auto& [before, after] : {std::pair{2, 3}, {3, 1}, {1, 4}, {4, 2}}) {
    SCOPED_TRACE(testing::Message() << before << " -> " << after);
    const Config config = config_in(std::to_string(before) + "to" + std::to_string(after));
    std::vector<double> losses = run_training(config, before, false, 4).losses();
    for (const double loss : run_training(config, after, true).losses()) losses.push_back(loss);
    ASSERT_EQ(losses.size(), whole.size());
    for (std::size_t i = 0; i < whole.size(); ++i) EXPECT_NEAR(losses[i], whole[i], 1e-5 * whole[i]) << "step " << i + 1;
  }
}

TEST_F(Checkpoint, HoldsWholeTensorsOnceUnderHuggingFaceNames) {
  const Config config = config_in("run");
  run_training(config, 3);
  const fs::path checkpoint = checkpoint_folder(config, 8);
  const Manifest manifest = read_manifest(checkpoint);
  EXPECT_EQ(manifest.step, 8);
  EXPECT_EQ(manifest.ranks, 3);
  ASSERT_EQ(manifest.files.size(), 3u);
  const ParameterTable table(config.model);
  std::map<std::string, Extents> found;
  for (const Manifest::File& file : manifest.files) {
    const SafetensorsFile contents(checkpoint / file.name);
    for (const auto& [name, info] : contents.tensors()) {
      EXPECT_EQ(info.dtype, DType::f32);
      EXPECT_TRUE(found.emplace(name, Extents(info.shape)).second) << name;
    }
  }
  EXPECT_EQ(found.size(), 3 * table.all().size());
  for (const Parameter& parameter : table.all()) {
    for (const std::string prefix : {"", "optimizer.exp_avg.", "optimizer.exp_avg_sq."})
      EXPECT_EQ(found.at(prefix + parameter.name), parameter.shape);
  }
}

TEST_F(Checkpoint, FilesOfTheRanksAreOfSimilarLength) {
  Config config = config_in("run");
  config.model.tie_embeddings = false;
  for (const int ranks : {2, 3, 5}) {
    config.run.directory = (folder_ / std::to_string(ranks)).string();
    run_training(config, ranks);
    const Manifest manifest = read_manifest(checkpoint_folder(config, 8));
    const auto [shortest, longest] = std::ranges::minmax(manifest.files, {}, &Manifest::File::bytes);
    const std::uint64_t largest_tensor = 3 * 4 * 256 * 16, headers = 8192;  // f32, and two moments
    EXPECT_LE(longest.bytes - shortest.bytes, largest_tensor + headers) << ranks;
  }
}

nlohmann::json json_of(const fs::path& path) { return nlohmann::json::parse(read_file(path, 1 << 20)); }

TEST_F(Checkpoint, TransformersFindsEveryWeightAndTheModel) {
  Config config = config_in("run");
  config.model.rope_theta = 500000;
  run_training(config, 3);
  const fs::path checkpoint = checkpoint_folder(config, 8);
  const nlohmann::json index = json_of(checkpoint / "model.safetensors.index.json");
  const ParameterTable table(config.model);
  EXPECT_EQ(index.at("weight_map").size(), table.all().size());
  for (const Parameter& parameter : table.all()) {
    const SafetensorsFile file(checkpoint / index.at("weight_map").at(parameter.name).get<std::string>());
    EXPECT_TRUE(file.contains(parameter.name));
    EXPECT_EQ(file.metadata().at("format"), "pt");
  }
  EXPECT_EQ(index.at("metadata").at("total_size"), 4 * table.elements());
  const nlohmann::json model = json_of(checkpoint / "config.json");
  EXPECT_EQ(model.at("model_type"), "llama");
  EXPECT_EQ(model.at("head_dim"), 4);
  EXPECT_EQ(model.at("num_key_value_heads"), 2);
  EXPECT_EQ(model.at("rope_theta"), 500000);
  EXPECT_EQ(model.at("tie_word_embeddings"), true);
  EXPECT_FALSE(model.contains("sliding_window"));
}

TEST_F(Checkpoint, TransformersIsToldTheModelOnlyIfItHasIt) {
  for (const std::string pattern : {"W", "SW", "SL"}) {
    Config config = config_in(pattern);
    config.model.pattern = pattern;
    config.model.window = pattern == "SL" ? 0 : 8;
    config.model.gate = pattern == "SL" ? "basic" : "";
    config.parallel.layout = "zigzag";
    run_training(config, 1);
    const fs::path file = checkpoint_folder(config, 8) / "config.json";
    ASSERT_EQ(fs::exists(file), pattern == "W") << pattern;
    if (pattern != "W") continue;
    EXPECT_EQ(json_of(file).at("model_type"), "mistral");
    EXPECT_EQ(json_of(file).at("sliding_window"), 9);
  }
}

TEST_F(Checkpoint, AManifestWithoutConfigurationIsRefusedWithWhatItLacks) {
  const Stream stream;
  const ParameterTable parameters(config_in("bare").model);
  ShardedAdamw optimizer(parameters, DType::f32, {}, Memory());
  optimizer.initialise(1, stream);
  std::string message = "accepted";
  try {
    save_checkpoint(folder_ / "bare", {.step = 1, .corpus_digest = "none"}, optimizer, stream);
  } catch (const InvalidArgument& error) {
    message = error.what();
  }
  EXPECT_TRUE(mentions(message, "the manifest's config lacks model.")) << message;
  EXPECT_FALSE(newest_checkpoint(folder_ / "bare").has_value());
}

TEST_F(Checkpoint, KeepsTheNewestTwoAndIgnoresUnfinishedOnes) {
  Config config = config_in("run");
  config.run.checkpoint_every = 2;
  run_training(config, 2, false, 7);
  const std::int64_t last = read_manifest(*newest_checkpoint(config.run.directory)).step;
  EXPECT_GE(last, 6);
  int folders = 0;
  for (const auto& entry : fs::directory_iterator(fs::path(config.run.directory) / "checkpoints")) folders += entry.is_directory() ? 1 : 0;
  EXPECT_EQ(folders, 2);
  write_text(fs::path(config.run.directory) / "checkpoints/step-00000099.tmp/rank-00000-of-00002.safetensors", "half");
  EXPECT_EQ(newest_checkpoint(config.run.directory), checkpoint_folder(config, last));
  fs::remove(fs::path(config.run.directory) / "checkpoints/LATEST");
  EXPECT_EQ(newest_checkpoint(config.run.directory), checkpoint_folder(config, last));
  EXPECT_EQ(run_training(config, 2, true).result.last_step, 8);
}

TEST_F(Checkpoint, SavingRemovesWhatAnEarlierSaveLeftUnfinished) {
  const Config config = config_in("run");
  const fs::path checkpoints = fs::path(config.run.directory) / "checkpoints", left = checkpoints / "step-00000003.tmp";
  write_text(left / "rank-00000-of-00002.safetensors", "half");
  write_text(checkpoints / "notes.tmp", "not ours");
  run_training(config, 2);
  EXPECT_FALSE(fs::exists(left));
  EXPECT_TRUE(fs::exists(checkpoints / "notes.tmp"));
}

TEST_F(Checkpoint, MetricsHaveOneLineForEveryStepAfterACrash) {
  Config config = config_in("run");
  config.run.checkpoint_every = 3;
  run_training(config, 2);
  // As if the machine had died while step 8 was running: the checkpoint of step 8 was never made, lines 7 and half of 8 were.
  const fs::path run = config.run.directory;
  fs::remove_all(checkpoint_folder(config, 8));
  write_text(run / "checkpoints/LATEST", "step-00000006\n");
  const std::string metrics = read_file(run / "metrics.jsonl", 1 << 20);
  write_text(run / "metrics.jsonl", metrics.substr(0, metrics.size() - 40));
  const Outcome resumed = run_training(config, 2, true);
  EXPECT_EQ(resumed.steps.front().step, 7);
  const std::string after = read_file(run / "metrics.jsonl", 1 << 20);
  EXPECT_EQ(std::count(after.begin(), after.end(), '\n'), 8);
  // Losses are the same ones, so the text before them is, too.
  for (int step = 1; step <= 8; ++step) {
    const std::string key = "{\"step\":" + std::to_string(step) + ",\"loss\":";
    const std::size_t before_at = metrics.find(key), after_at = after.find(key);
    ASSERT_NE(after_at, std::string::npos);
    EXPECT_EQ(after.substr(after_at, after.find(',', after_at + key.size()) - after_at),
              metrics.substr(before_at, metrics.find(',', before_at + key.size()) - before_at));
  }
}

TEST_F(Checkpoint, ASecondRunInAFolderIsRefusedWhileTheFirstWrites) {
  const Config config = config_in("run");
  Config second = config;
  second.run.deadline_seconds = 0.1;  // of which it waits a part
  const auto refusal = [&](bool resume) {
    try {
      run_training(second, 2, resume);
    } catch (const InvalidArgument& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  std::vector<std::string> refusals;
  comm::run_thread_ranks(2, [&](const comm::Communicator& communicator) {
    const auto start_others = [&](const StepMetrics&) {
      for (const bool resume : {false, true}) refusals.push_back(refusal(resume));
    };
    train(config, {.measure_peak = {}, .on_step = start_others, .on_message = {}}, communicator);
  });
  ASSERT_EQ(refusals.size(), 16u);
  for (const std::string& message : refusals) EXPECT_NE(message.find("another run writes to run.directory"), std::string::npos) << message;
  EXPECT_EQ(run_training(config, 2, true).result.last_step, 8);
}

TEST_F(Checkpoint, RunFolderMayHaveAnyName) {
  const Config config = config_in("na\xefve \"run\"");
  run_training(config, 2, false, 4);
  EXPECT_EQ(run_training(config, 2, true).result.last_step, 8);
}

TEST_F(Checkpoint, EveryDamageIsFoundAndNamed) {
  Config config = config_in("run");
  config.run.checkpoint_every = 4;
  run_training(config, 2);
  const fs::path checkpoint = checkpoint_folder(config, 8);
  std::vector<std::string> names = {"manifest.json"};
  for (const Manifest::File& file : read_manifest(checkpoint).files) names.push_back(file.name);
  for (const std::string& name : names) {
    const fs::path path = checkpoint / name;
    const std::string contents = read_file(path, 64 << 20);
    SCOPED_TRACE(name);
    for (const std::size_t position : {std::size_t{3}, contents.size() / 2, contents.size() - 3}) {
      std::string flipped = contents;
      flipped[position] = static_cast<char>(flipped[position] ^ 0x04);
      write_text(path, flipped);
      const std::string message = refusal(config, 2);
      EXPECT_TRUE(mentions(message, name) && mentions(message, "step-00000004")) << message;
    }
    write_text(path, contents.substr(0, contents.size() / 2));
    std::string message = refusal(config, 3);
    EXPECT_TRUE(mentions(message, name)) << message;
    fs::remove(path);
    message = refusal(config, 1);
    if (name != "manifest.json") {
      EXPECT_TRUE(mentions(message, name) && mentions(message, "model.")) << message;
      EXPECT_TRUE(mentions(message, "step-00000004")) << message;  // the older one is offered, not taken
    }
    write_text(path, contents);
  }
  EXPECT_EQ(run_training(config, 2, true).result.last_step, 8);
}

TEST_F(Checkpoint, AnotherRunIsRefusedWithTheKeyAndBothValues) {
  const Config config = config_in("run");
  run_training(config, 2);
  const std::vector<std::pair<std::string, std::function<void(Config&)>>> changes = {
      {"model.ffn = 24, this run has 32", [](Config& c) { c.model.ffn = 32; }},
      {"model.layers = 2, this run has 1", [](Config& c) { c.model.layers = 1; }},
      {"run.seed = 1, this run has 2", [](Config& c) { c.run.seed = 2; }},
      {"data.context = 64, this run has 65", [](Config& c) { c.data.context = 65; }},
      {"data.packing = best_fit, this run has concat", [](Config& c) { c.data.packing = "concat"; }},
      {"corpus digest", [&](Config&) { write_text(folder_ / "corpus/new.txt", "more"); }},
      {"without data.validation_paths", [&](Config& c) { c.data.validation_paths = {(folder_ / "corpus/7.txt").string()}; }},
  };
  for (const auto& [expected, change] : changes) {
    Config changed = config;
    change(changed);
    const std::string message = refusal(changed, 2);
    EXPECT_TRUE(mentions(message, expected)) << message;
  }
  fs::remove(folder_ / "corpus/new.txt");
  Config longer = config;
  longer.run.steps = 9;
  EXPECT_EQ(run_training(longer, 2, true).steps.size(), 1u);
}

}  // namespace
}  // namespace periplus::train
