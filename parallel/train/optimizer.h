#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "parallel/train/config.h"
#include "parallel/train/model/parameters.h"
#include "runtime/comm/communicator.h"
#include "runtime/tensor.h"

namespace periplus::train {

/// Linear warm-up to the peak, then a cosine down to a tenth of it at the last step. step: 1-based.
double learning_rate_at(const OptimizerConfig& config, std::int64_t step, std::int64_t steps);

/// Elements of a flat buffer that each rank owns: consecutive ranges, [floor(r n / P), floor((r+1) n / P)).
std::vector<std::int64_t> shard_counts(std::int64_t elements, int ranks);

/// No element of f32 or f64 in host memory is NaN or infinite.
bool all_finite(ConstTensorView tensor);

/// AdamW whose state (master weights, both moments; f32, f64 for f64) is split over all ranks (ZeRO-1): gradients are
/// summed into shards, each rank updates its own, working weights are gathered. Methods with a stream, which is of the device of
/// `memory`, are collective.
class ShardedAdamw {
 public:
  /// inbox_bytes: on a device, room for what other ranks send at a time.
  ShardedAdamw(const ParameterTable& parameters, DType storage, comm::Communicator communicator, const Memory& memory,
               std::size_t inbox_bytes = std::size_t{256} << 20);

  /// to [n] := elements [first, first + n) of a parameter, in host memory.
  using StartValues = std::function<void(const Parameter& parameter, std::int64_t first, TensorView to)>;
  /// Fills the master shard with start values, asked for by several threads, and the moments with zeros.
  void initialise(const StartValues& values, StreamView stream);
  /// With those of the seed.
  void initialise(std::uint64_t seed, StreamView stream);
  /// weights (flat, storage type) := the master weights of all ranks.
  void publish(TensorView weights, StreamView stream) const;

  /// Sums the gradients over ranks into the own shard; returns the norm of the whole sum.
  double reduce(ConstTensorView gradients, StreamView stream);
  /// One update from the reduced gradient times gradient_scale, then publishes. Tensors of one dimension do not decay.
  void update(const OptimizerConfig& config, double learning_rate, double gradient_scale, std::int64_t step, TensorView weights,
              StreamView stream);
  /// Throws InvalidArgument naming the step and the first tensor whose summed gradient is not finite, and its rank.
  [[noreturn]] void throw_not_finite(std::int64_t step, StreamView stream) const;

  const ParameterTable& parameters() const noexcept { return *parameters_; }
  const comm::Communicator& communicator() const noexcept { return communicator_; }
  std::span<const std::int64_t> counts() const noexcept { return counts_; }
  std::int64_t begin() const noexcept { return begin_; }  ///< First flat element of this rank's shard.
  std::int64_t count() const noexcept { return counts_[static_cast<std::size_t>(communicator_.rank())]; }
  TensorView master() const { return master_; }
  TensorView exp_avg() const { return exp_avg_; }
  TensorView exp_avg_sq() const { return exp_avg_sq_; }
  TensorView gradient() const { return gradient_; }

 private:
  void sum_into_shard(ConstTensorView gradients, StreamView stream);
  void sum_slice(ConstTensorView gradients, std::int64_t first, StreamView stream);
  std::int64_t inbox_slice() const { return inbox_.shape()[1]; }

  const ParameterTable* parameters_;
  comm::Communicator communicator_;
  std::vector<std::int64_t> counts_;
  std::int64_t begin_ = 0;
  Tensor master_, exp_avg_, exp_avg_sq_, gradient_;
  Tensor inbox_;  ///< On a device, [other ranks, n]: slices of gradient_'s parts that they send.
};

}  // namespace periplus::train
