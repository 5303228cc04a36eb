#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "kernels/matmul.h"
#include "parallel/train/config.h"
#include "parallel/train/planner_costs.h"
#include "runtime/comm/communicator.h"
#include "runtime/device.h"
#include "runtime/memory.h"
#include "runtime/trace.h"

namespace periplus::train {

/// One line of metrics.jsonl.
struct StepMetrics {
  std::int64_t step = 0;    ///< 1-based
  double loss = 0;          ///< nats per predicted token, over all ranks, before the update
  double grad_norm = 0;     ///< global, before clipping
  std::int64_t tokens = 0;  ///< tokens of the step, all ranks
  double tokens_per_second = 0;
  double step_seconds = 0;
  double flops_per_second = 0;         ///< model flops actually needed (true mask area), all ranks
  double mfu = 0;                      ///< flops_per_second / (ranks x measured matrix peak of a rank)
  double exposed_comm_seconds = 0;     ///< largest over ranks
  std::int64_t peak_memory_bytes = 0;  ///< largest over ranks, counted by the runtime's allocator
  int ranks = 1;
  double learning_rate = 0;
  std::int64_t micro_batches = 1;
  double predicted_seconds = 0;                ///< By the planner, without the update of the weights; 0: there is none.
  std::optional<double> validation_loss = {};  ///< nats per predicted token of the validation text, after the update; if it was due
};

/// What a training run is asked to do besides its configuration.
struct TrainOptions {
  /// Continue from the newest complete checkpoint in run.directory. Without it, a directory that holds checkpoints is refused.
  bool resume = false;
  bool checkpoints = true;  ///< Benchmarks turn it off: nothing is saved, whatever the configuration says.
  /// Measures the matrix peak of a rank, flops per second, before the first step, and on CPUs again when a step was faster: others then
  /// slowed the measurement. Not there: mfu is 0.
  std::function<double(DType, Device)> measure_peak = kernels::measure_matmul_peak;
  /// Where this rank computes. Ranks that are threads may share a GPU; checkpoints are the same for all devices.
  Device device = {};
  /// What parallel.planner plans for, and what strategy auto chooses by instead of the figures of its options; equal on all ranks. Its
  /// text goes to run.directory as machine.toml.
  std::optional<MachineDescription> machine = {};
  /// Set by the caller (a signal handler, say) on any rank: all ranks agree on the step, save a checkpoint and stop.
  const std::atomic<bool>* stop_requested = nullptr;
  /// Called on rank 0 after every step.
  std::function<void(const StepMetrics&)> on_step;
  /// Called on rank 0 with sentences for people (what was found, where things were written).
  std::function<void(const std::string&)> on_message;
};

struct TrainResult {
  std::int64_t last_step = 0;
  std::int64_t steps_run = 0;  ///< By this call; a resumed run may have nothing left to do.
  bool stopped_by_request = false;
  double unigram_entropy = 0;                  ///< nats per token of the training text, order 0
  std::optional<double> order1_entropy = {};   ///< nats per token given the one before, where tokens are bytes
  std::int64_t state_bytes = 0;                ///< weights, gradients and optimizer state of rank 0; the rest of the peak is activations
  double mean_last_losses = 0;                 ///< mean loss of the last ten steps
  std::optional<double> validation_loss = {};  ///< The last one measured. A resumed run with no step left measures it, too.
};

/// Trains a language model on all ranks of the communicator: as one context-parallel group, or in those of parallel.planner. Collective.
/// Writes metrics.jsonl, checkpoints and, if asked, trace.json to run.directory (rank 0 writes shared files).
/// Errors: InvalidArgument for a bad configuration, unreadable data or a damaged checkpoint; BackendUnavailable for a device that
/// this build or machine lacks, or that lacks kernels of the model; CommError.
TrainResult train(const Config& config, const TrainOptions& options, comm::Communicator communicator);

}  // namespace periplus::train
