#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>

#include "parallel/problem.h"
#include "parallel/train/config.h"
#include "parallel/train/model/model.h"
#include "parallel/train/optimizer.h"
#include "parallel/train/step_plan.h"
#include "runtime/comm/communicator.h"
#include "runtime/device.h"
#include "runtime/memory.h"
#include "runtime/trace.h"

namespace periplus::train {

/// A model on one rank, its part of the optimizer, and what a training step does to both. Reads no data and writes no file: that is the
/// trainer's (trainer.h) or another program's, which makes batches by shard_row() (examples/train_loop.cpp). Methods are collective.
class Engine {
 public:
  /// Of config: model, parallel, optimizer, run.steps, which the learning rate's schedule ends at, run.recompute and
  /// run.offload_activations and _optimizer. It and `stream`, of the device of `memory`, outlive this. tell: on rank 0, takes sentences
  /// for people.
  Engine(const Config& config, DType dtype, const Memory& memory, comm::Communicator communicator, const Stream& stream,
         std::function<void(const std::string&)> tell = {});

  const Model& model() const noexcept { return model_; }
  /// What weights start from goes to its shards: initialise(), load_initial_weights() or load_checkpoint(). publish() then.
  ShardedAdamw& optimizer() noexcept { return optimizer_; }
  /// The model's weights are those of the optimizer.
  void publish() { optimizer_.publish(model_.weights(), stream_); }

  /// Whether ranks have parts of the gradients each. Then they take part in micro-batches in which they have no group: step() takes a
  /// share without a batch for each.
  bool shares_gradients() const noexcept { return config_.parallel.zero_stage >= 2; }

  /// Of this rank. Trainers sum losses and flops over ranks.
  struct StepResult {
    double loss = 0;       ///< Sum over this rank's labels, nats, before the update.
    double flops = 0;      ///< Of the model: of the groups whose first rank this is, all their ranks.
    double grad_norm = 0;  ///< Of all ranks, before clipping.
    double learning_rate = 0;
    double exposed_seconds = 0;  ///< That the host waited for messages with nothing to compute.
  };
  /// One update by the mean loss over `labels` labels, which is what valid_labels of the batches says: all batches of the step, of all
  /// groups and micro-batches. Without labels nothing changes. step: 1-based.
  /// Errors: InvalidArgument for gradients that are not finite, and for what cannot be planned.
  StepResult step(std::span<const Share> shares, std::int64_t step, std::int64_t labels, Tracer* tracer = nullptr);
  /// Of a share with a batch: sum over this rank's labels, nats.
  double loss(const Share& share);

 private:
  AttentionOptions strategy_for(char letter, const AttentionProblem& problem);
  void plan(const Share& share, Tracer* tracer);
  void fetch_weights(std::size_t section, TensorView weights, Tracer* tracer) const;
  void add_gradients(const Share& share, kernels::Update update, Tracer* tracer, StepResult& result);
  double update(std::int64_t step, double learning_rate, bool has_labels, Tracer* tracer);
  bool shares_weights() const { return config_.parallel.zero_stage == 3; }

  const Config& config_;
  comm::Communicator communicator_;
  const Stream& stream_;
  std::function<void(const std::string&)> tell_;
  Model model_;
  ShardedAdamw optimizer_;
  std::map<char, std::uint64_t> chosen_;  // digest of what strategy auto stands for, by kind of layer
};

}  // namespace periplus::train
