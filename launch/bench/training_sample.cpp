#include "launch/bench/training_sample.h"

#include <filesystem>
#include <thread>

#include <fmt/format.h>

#include "runtime/error.h"

namespace periplus::launch::bench {

TrainingSample train_briefly(const train::Config& base, const comm::Communicator& communicator) {
  if (base.parallel.planner != "none")
    throw InvalidArgument(
        fmt::format("bench: parallel.planner is {}, but benches compare ranks on the same rows; leave it out", base.parallel.planner));
  train::Config config = base;
  const std::string mine =
      (std::filesystem::temp_directory_path() / fmt::format("periplus-bench-{}", std::hash<std::thread::id>{}(std::this_thread::get_id())))
          .string();
  config.run.directory = communicator.all_gather_bytes(mine, Stream()).front();
  TrainingSample sample;
  train::TrainOptions options;
  options.checkpoints = false;
  options.measure_peak = {};
  options.on_step = [&](const train::StepMetrics& metrics) {
    if (metrics.step == 1) sample.first_loss = metrics.loss;
    if (metrics.step > 1) sample.tokens_per_second.push_back(metrics.tokens_per_second);
    sample.peak_bytes = metrics.peak_memory_bytes;
  };
  const train::TrainResult result = train::train(config, options, communicator);
  sample.state_bytes = result.state_bytes;
  if (communicator.rank() == 0) std::filesystem::remove_all(config.run.directory);
  return sample;
}

}  // namespace periplus::launch::bench
