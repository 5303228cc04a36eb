#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "kernels/update.h"
#include "parallel/train/config.h"
#include "parallel/train/host_adamw.h"
#include "parallel/train/model/parameters.h"
#include "parallel/train/shards.h"
#include "runtime/comm/communicator.h"
#include "runtime/tensor.h"

namespace periplus::train {

/// Linear warm-up to the peak, then a cosine down to a tenth of it at the last step. step: 1-based.
double learning_rate_at(const OptimizerConfig& config, std::int64_t step, std::int64_t steps);

/// No element of f32 or f64 in host memory is NaN or infinite.
bool all_finite(ConstTensorView tensor);

/// On a device, room for what other ranks send of a gradient at a time.
inline constexpr std::size_t kInboxBytes = std::size_t{256} << 20;

struct OptimizerStorage {
  bool weights = false;  ///< The own part of the working weights, in the storage type, for gather_section().
  bool on_host = false;  ///< On a device: master weights and moments are in host memory, and updated there.
  std::size_t inbox_bytes = kInboxBytes;
};

/// AdamW whose state (master weights, both moments; f32, f64 for f64) is split over all ranks: gradients are summed into shards, each rank
/// updates its own, working weights are gathered. Gradients of all parameters may be summed at once (ZeRO-1), or those of each section as
/// backward completes them, for every micro-batch (ZeRO-2). Methods with a stream, which is of the device of `memory`, are collective.
class ShardedAdamw {
 public:
  /// type: of the working weights. Errors: InvalidArgument for storage that the device has no use for.
  ShardedAdamw(const ParameterTable& parameters, DType type, comm::Communicator communicator, const Memory& memory,
               const OptimizerStorage& storage = {});

  /// to [n] := elements [first, first + n) of a parameter, in host memory.
  using StartValues = std::function<void(const Parameter& parameter, std::int64_t first, TensorView to)>;
  /// Fills the master shard with start values, asked for by several threads, and the moments with zeros. What `values` throws comes out
  /// of it.
  void initialise(const StartValues& values, StreamView stream);
  /// With those of the seed.
  void initialise(std::uint64_t seed, StreamView stream);
  /// weights (flat, storage type) := the master weights of all ranks; if they are kept here, which leaves `weights` out, the own part.
  void publish(TensorView weights, StreamView stream) const;
  /// weights := those of a section, from the parts that ranks keep.
  void gather_section(std::size_t section, TensorView weights, StreamView stream) const;

  /// The own part of a section's gradient (+)= the sum over ranks of theirs, flat.
  void sum(std::size_t section, ConstTensorView gradients, kernels::Update update, StreamView stream);
  /// The same for all sections of gradients of all parameters.
  void sum(ConstTensorView gradients, StreamView stream);
  /// Of the whole gradient.
  double norm(StreamView stream) const;
  /// One update from the summed gradient times gradient_scale, then publishes. Tensors of one dimension do not decay.
  void update(const OptimizerConfig& config, double learning_rate, double gradient_scale, std::int64_t step, TensorView weights,
              StreamView stream);
  /// Throws InvalidArgument naming the step and the first tensor whose summed gradient is not finite, and its rank.
  [[noreturn]] void throw_not_finite(std::int64_t step, StreamView stream) const;

  const ParameterTable& parameters() const noexcept { return *parameters_; }
  const comm::Communicator& communicator() const noexcept { return communicator_; }
  const Shards& shards() const noexcept { return shards_; }
  std::span<const Shards::Part> own_parts() const { return shards_.of_rank(communicator_.rank()); }
  /// Of the memory that master(), exp_avg() and exp_avg_sq() are in: `stream`, or one of the host.
  StreamView stream_of_states(StreamView stream) const noexcept { return on_host_ ? StreamView(host_) : stream; }
  TensorView master() const { return master_; }
  TensorView exp_avg() const { return exp_avg_; }
  TensorView exp_avg_sq() const { return exp_avg_sq_; }
  TensorView gradient() const { return gradient_; }

 private:
  void sum_slice(std::size_t section, ConstTensorView gradients, std::int64_t first, kernels::Update update, StreamView stream);
  std::int64_t inbox_slice() const { return inbox_.shape()[1]; }
  TensorView own(const Tensor& shard, const Shards::Part& part) const { return shard.view().slice(0, part.offset, part.count); }
  TensorView working(const Shards::Part& part, const TensorView& weights) const;
  void gather(TensorView weights, StreamView stream) const;

  const ParameterTable* parameters_;
  comm::Communicator communicator_;
  Shards shards_;
  Tensor master_, exp_avg_, exp_avg_sq_, gradient_;
  Tensor weights_;  ///< If they are kept.
  /// What updates them there, if master_, exp_avg_ and exp_avg_sq_ are in host memory beside a device.
  std::optional<HostAdamw> on_host_;
  Stream host_;
  Tensor inbox_;  ///< On a device, [other ranks, n]: slices of what they send for a part of gradient_.
};

}  // namespace periplus::train
