// ZeRO stage 1 (algorithms.md 10.6): the true gradient is the sum over ranks, whatever their number of tokens.
#include "parallel/train/optimizer.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <string>

#include <fmt/format.h>

#include "kernels/transfer.h"
#include "kernels/transformer.h"
#include "parallel/train/model/tiles.h"
#include "runtime/device_tensor.h"
#include "runtime/error.h"

namespace periplus::train {
namespace {

constexpr double kFinalShare = 0.1;

struct Overlap {
  const Parameter* parameter;
  std::int64_t begin;  // flat
  std::int64_t count;
};

/// The parts of parameters that lie in a flat range.
std::vector<Overlap> overlaps(const ParameterTable& parameters, std::int64_t begin, std::int64_t count) {
  std::vector<Overlap> found;
  for (const Parameter& parameter : parameters.all()) {
    const std::int64_t from = std::max(begin, parameter.offset), to = std::min(begin + count, parameter.offset + parameter.elements);
    if (from < to) found.push_back({&parameter, from, to - from});
  }
  return found;
}

/// Neighbours that decay alike become one: a kernel takes them together.
std::vector<Overlap> runs_of_equal_decay(const std::vector<Overlap>& parts) {
  std::vector<Overlap> runs;
  for (const Overlap& part : parts) {
    if (!runs.empty() && runs.back().parameter->decays() == part.parameter->decays()) {
      runs.back().count += part.count;
    } else {
      runs.push_back(part);
    }
  }
  return runs;
}

}  // namespace

bool all_finite(ConstTensorView tensor) {
  bool finite = true;
  visit_dtype<double, float>(tensor.dtype(), "optimizer", [&]<class T>() {
    const auto values = tensor.span<T>();
    finite = std::all_of(values.begin(), values.end(), [](T value) { return std::isfinite(value); });
  });
  return finite;
}

double learning_rate_at(const OptimizerConfig& config, std::int64_t step, std::int64_t steps) {
  if (step <= config.warmup_steps) return config.learning_rate * static_cast<double>(step) / static_cast<double>(config.warmup_steps);
  const auto decay_steps = static_cast<double>(std::max<std::int64_t>(1, steps - config.warmup_steps));
  const double done = std::min(1.0, static_cast<double>(step - config.warmup_steps) / decay_steps);
  return config.learning_rate * (kFinalShare + (1 - kFinalShare) * 0.5 * (1 + std::cos(std::numbers::pi * done)));
}

std::vector<std::int64_t> shard_counts(std::int64_t elements, int ranks) {
  std::vector<std::int64_t> counts;
  for (std::int64_t rank = 0; rank < ranks; ++rank) counts.push_back((rank + 1) * elements / ranks - rank * elements / ranks);
  return counts;
}

ShardedAdamw::ShardedAdamw(const ParameterTable& parameters, DType storage, comm::Communicator communicator, const Memory& memory,
                           std::size_t inbox_bytes)
    : parameters_(&parameters), communicator_(std::move(communicator)), counts_(shard_counts(parameters.elements(), communicator_.size())) {
  begin_ = std::accumulate(counts_.begin(), counts_.begin() + communicator_.rank(), std::int64_t{0});
  const DType accumulator = accumulator_of(storage);
  for (Tensor* tensor : {&master_, &exp_avg_, &exp_avg_sq_, &gradient_}) *tensor = Tensor::zeros({count()}, accumulator, memory);
  if (memory.device().kind == DeviceKind::cuda) {
    const std::int64_t others = communicator_.size() - 1, most = *std::max_element(counts_.begin(), counts_.end());
    const auto room = static_cast<std::int64_t>(inbox_bytes / size_of(accumulator)) / std::max<std::int64_t>(1, others);
    inbox_ = Tensor({others, std::min(most, room)}, accumulator, memory);
  }
}

void ShardedAdamw::initialise(std::uint64_t seed, StreamView stream) {
  const auto values = [seed](const Parameter& parameter, std::int64_t first, TensorView to) {
    const std::vector<double> all = initial_values(parameter, seed);
    const ConstTensorView source(reinterpret_cast<const std::byte*>(all.data()), DType::f64, {parameter.elements});
    copy(source.slice(0, first, to.elements()), to);
  };
  initialise(values, stream);
}

void ShardedAdamw::initialise(const StartValues& start, StreamView stream) {
  const bool on_cpu = stream.device().kind == DeviceKind::cpu;
  const Tensor staged = on_cpu ? Tensor() : Tensor(master_.shape(), master_.dtype(), Memory());
  const TensorView values = on_cpu ? master() : staged.view();
  const std::vector<Overlap> parts = overlaps(*parameters_, begin_, count());
#pragma omp parallel for schedule(dynamic)
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const auto& [parameter, begin, part_count] = parts[i];
    start(*parameter, begin - parameter->offset, values.slice(0, begin - begin_, part_count));
  }
  if (!on_cpu) upload(values, master(), stream);
  fill_zero(exp_avg_, stream);
  fill_zero(exp_avg_sq_, stream);
}

void ShardedAdamw::publish(TensorView weights, StreamView stream) const {
  const TensorView mine = weights.slice(0, begin_, count());
  kernels::copy(as_row(master()), as_row(mine), stream);
  communicator_.all_gather(mine, weights, counts_, stream);
}

/// The communicator's reduce_scatter, which sums on the host only, and on a device the same sum in the same order.
void ShardedAdamw::sum_into_shard(ConstTensorView gradients, StreamView stream) {
  if (stream.device().kind == DeviceKind::cpu) return communicator_.reduce_scatter(gradients, gradient_, counts_, stream);
  const std::int64_t most = *std::max_element(counts_.begin(), counts_.end());
  for (std::int64_t first = 0; first == 0 || first < most; first += inbox_slice()) sum_slice(gradients, first, stream);
}

void ShardedAdamw::sum_slice(ConstTensorView gradients, std::int64_t first, StreamView stream) {
  const auto slice_of = [&](const auto& share) {
    const std::int64_t begin = std::min(first, share.elements());
    return share.slice(0, begin, std::min(inbox_slice(), share.elements() - begin));
  };
  const TensorView sum = slice_of(gradient());
  std::vector<comm::Send> sends;
  std::vector<comm::Receive> receives;
  std::vector<ConstTensorView> parts;
  std::int64_t begin = 0;
  for (int rank = 0; rank < communicator_.size(); ++rank) {
    const std::int64_t count = counts_[static_cast<std::size_t>(rank)];
    const ConstTensorView theirs = slice_of(gradients.slice(0, begin, count));
    begin += count;
    if (rank == communicator_.rank()) {
      parts.push_back(theirs);
      continue;
    }
    const TensorView part = inbox_.view().slice(0, std::ssize(receives), 1).reshape({inbox_slice()}).slice(0, 0, sum.elements());
    sends.push_back({rank, theirs.bytes(), theirs.size_bytes()});
    receives.push_back({rank, part.bytes(), part.size_bytes()});
    parts.push_back(part);
  }
  communicator_.exchange(sends, receives, {.operation = "sum of gradients", .lane = comm::kCollectiveLane}, stream).wait();
  kernels::copy(as_row(parts.front()), as_row(sum), stream);
  for (std::size_t rank = 1; rank < parts.size(); ++rank) kernels::add(as_row(parts[rank]), as_row(sum), stream);
}

double ShardedAdamw::reduce(ConstTensorView gradients, StreamView stream) {
  sum_into_shard(gradients, stream);
  double squares = kernels::sum_of_squares(gradient_, stream);
  communicator_.throw_if_failed();
  communicator_.all_reduce(TensorView(reinterpret_cast<std::byte*>(&squares), DType::f64, {1}), comm::Reduce::sum, Stream());
  return std::sqrt(squares);
}

void ShardedAdamw::update(const OptimizerConfig& config, double learning_rate, double gradient_scale, std::int64_t step, TensorView weights,
                          StreamView stream) {
  kernels::AdamwOptions options{.learning_rate = learning_rate, .beta1 = config.betas[0], .beta2 = config.betas[1]};
  options.step = step;
  options.gradient_scale = gradient_scale;
  for (const Overlap& part : runs_of_equal_decay(overlaps(*parameters_, begin_, count()))) {
    options.weight_decay = part.parameter->decays() ? config.weight_decay : 0.0;
    const auto of = [&](const Tensor& shard) { return shard.view().slice(0, part.begin - begin_, part.count); };
    kernels::adamw(of(master_), of(exp_avg_), of(exp_avg_sq_), of(gradient_), weights.slice(0, part.begin, part.count), options, stream);
  }
  communicator_.all_gather(weights.slice(0, begin_, count()), weights, counts_, stream);
}

void ShardedAdamw::throw_not_finite(std::int64_t step, StreamView stream) const {
  const Tensor gradient = to_host(gradient_, stream);
  std::string name;
  for (const Overlap& part : overlaps(*parameters_, begin_, count())) {
    if (name.empty() && !all_finite(gradient.view().slice(0, part.begin - begin_, part.count))) name = part.parameter->name;
  }
  const std::vector<std::string> names = communicator_.all_gather_bytes(name, Stream());
  const auto first = std::find_if(names.begin(), names.end(), [](const std::string& found) { return !found.empty(); });
  const std::string where = first == names.end() ? "the norm overflows although every element is finite"
                                                 : fmt::format("first in {} (shard of rank {})", *first, first - names.begin());
  throw InvalidArgument(fmt::format(
      "train: the gradient of step {} is not finite: {}; lower optimizer.learning_rate or raise optimizer.warmup_steps", step, where));
}

}  // namespace periplus::train
