#include "launch/bench/training_sample.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include <fmt/format.h>

#include "runtime/error.h"

namespace periplus::launch::bench {
namespace {

/// A folder of rank 0 that goes with it.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(const comm::Communicator& communicator) : mine_(communicator.rank() == 0) {
    if (mine_) {
      name_ = (std::filesystem::temp_directory_path() / "periplus-bench-XXXXXX").string();
      if (::mkdtemp(name_.data()) == nullptr) throw DeviceError(fmt::format("cannot make the folder {}: {}", name_, std::strerror(errno)));
    }
    name_ = communicator.all_gather_bytes(name_, Stream()).front();
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    if (mine_) std::filesystem::remove_all(name_, ignored);
  }
  const std::string& name() const noexcept { return name_; }

 private:
  bool mine_;
  std::string name_;
};

}  // namespace

void refuse_options_of_whole_runs(const OptionTable& table) {
  for (const char* const flag :
       {"directory", "initial-weights", "checkpoint-every", "validation", "validate-every", "validation-rows", "trace"}) {
    if (table.typed(flag)) throw InvalidArgument(fmt::format("--{} has no effect on a bench, which keeps nothing; leave it out", flag));
  }
}

TrainingSample train_briefly(const train::Config& base, const comm::Communicator& communicator) {
  if (base.parallel.planner != "none")
    throw InvalidArgument(
        fmt::format("parallel.planner is {}, but benches compare ranks on the same rows; leave it out", base.parallel.planner));
  train::Config config = base;
  const TemporaryFolder folder(communicator);
  config.run.directory = folder.name();
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
  return sample;
}

}  // namespace periplus::launch::bench
