// What the tests of the trainer share: a temporary folder, a small seeded corpus, and a tiny model.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include <unistd.h>

#include "parallel/train/trainer.h"
#include "runtime/comm/thread_transport.h"

namespace periplus::train {

/// Removed with everything in it at the end.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "periplus-train-XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

inline void write_text(const std::filesystem::path& path, const std::string& text) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

/// Words from a small vocabulary: something a tiny model can learn.
inline std::string seeded_text(std::size_t bytes, std::uint64_t seed) {
  static const std::vector<std::string> words = {"ring ", "rank ", "send ", "the ", "of ", "attention\n", "int ", "return 0;\n"};
  std::mt19937_64 engine(seed);
  std::string text;
  while (text.size() < bytes) text += words[engine() % words.size()];
  text.resize(bytes);
  return text;
}

/// Documents of uneven lengths, one of a single byte, some longer than the context of tiny_config.
inline void write_corpus(const std::filesystem::path& folder) {
  const std::vector<std::size_t> lengths = {1, 3, 17, 40, 64, 65, 90, 130, 200, 33, 7, 250};
  for (std::size_t i = 0; i < lengths.size(); ++i) write_text(folder / std::to_string(i).append(".txt"), seeded_text(lengths[i], 100 + i));
}

inline Config tiny_config(const std::filesystem::path& folder) {
  Config config;
  config.model = {.layers = 2, .hidden = 16, .heads = 4, .kv_heads = 2, .head_size = 4, .ffn = 24, .vocabulary = 256};
  config.data = {.paths = {(folder / "corpus").string()}, .context = 64};
  config.optimizer.learning_rate = 1e-2;
  config.optimizer.warmup_steps = 2;
  config.run.steps = 8;
  config.run.directory = (folder / "run").string();
  config.run.dtype = "f32";
  return config;
}

inline std::filesystem::path checkpoint_folder(const Config& config, std::int64_t step) {
  const std::string digits = std::to_string(step);
  std::string name = "step-";
  name.append(8 - digits.size(), '0').append(digits);
  return std::filesystem::path(config.run.directory) / "checkpoints" / name;
}

struct Outcome {
  std::vector<StepMetrics> steps;
  std::vector<std::string> messages;
  TrainResult result;
  std::vector<double> losses() const {
    std::vector<double> losses;
    for (const StepMetrics& metrics : steps) losses.push_back(metrics.loss);
    return losses;
  }
};

/// Trains on thread ranks; a positive stop_after asks for a stop on the last rank once rank 0 has reported that step.
inline Outcome run_training(const Config& config, int ranks, bool resume = false, std::int64_t stop_after = 0, Device device = {},
                            const std::optional<MachineDescription>& machine = {}, const std::function<double(DType, Device)>& peak = {}) {
  Outcome outcome;
  std::atomic<bool> stop{false};
  comm::run_thread_ranks(ranks, [&](comm::Communicator communicator) {
    const bool first = communicator.rank() == 0, last = communicator.rank() == communicator.size() - 1;
    TrainOptions options{.resume = resume,
                         .measure_peak = peak,
                         .device = device,
                         .machine = machine,
                         .stop_requested = last ? &stop : nullptr,
                         .on_step = {},
                         .on_message = {}};
    if (first) {
      options.on_message = [&](const std::string& message) { outcome.messages.push_back(message); };
      options.on_step = [&](const StepMetrics& metrics) {
        outcome.steps.push_back(metrics);
        // Seen by the other rank in this step or the next: the request is for the step after, as a signal would be.
        if (metrics.step + 1 == stop_after) stop = true;
      };
    }
    const TrainResult result = train(config, options, communicator);
    if (first) outcome.result = result;
  });
  return outcome;
}

}  // namespace periplus::train
