// ZeRO (algorithms.md 10.6): the true gradient is the sum over ranks, whatever their number of tokens.
#include "parallel/train/optimizer.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <numbers>
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
constexpr std::int64_t kAlignedElements = 64;  // slices begin at multiples: kernels then read and write 16 bytes at a time

/// Of a parameter, what a rank's shard holds.
struct OwnTensor {
  const Parameter* parameter;
  Shards::Part part;
};

std::vector<OwnTensor> own_tensors(const ParameterTable& parameters, const Shards& shards, int rank) {
  std::vector<OwnTensor> own;
  for (const Parameter& parameter : parameters.all()) {
    const Shards::Part part = shards.held(rank, parameter.offset, parameter.elements);
    if (part.count > 0) own.push_back({&parameter, part});
  }
  return own;
}

/// Neighbours that decay alike become one: a kernel takes them together.
std::vector<OwnTensor> runs_of_equal_decay(const std::vector<OwnTensor>& tensors) {
  std::vector<OwnTensor> runs;
  for (const OwnTensor& tensor : tensors) {
    const bool follows = !runs.empty() && runs.back().part.begin + runs.back().part.count == tensor.part.begin;
    if (follows && runs.back().parameter->decays() == tensor.parameter->decays()) {
      runs.back().part.count += tensor.part.count;
    } else {
      runs.push_back(tensor);
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

ShardedAdamw::ShardedAdamw(const ParameterTable& parameters, DType type, comm::Communicator communicator, const Memory& memory,
                           const OptimizerStorage& storage)
    : parameters_(&parameters), communicator_(std::move(communicator)), shards_(parameters.sections(), communicator_.size()) {
  const bool on_device = memory.device().kind == DeviceKind::cuda;
  if (storage.on_host && !on_device) {
    throw InvalidArgument(
        "optimizer: run.offload_optimizer keeps its states in host memory, and there they are where ranks compute on the CPU; leave it out "
        "or take --device cuda");
  }
  const DType accumulator = accumulator_of(type);
  const std::int64_t elements = shards_.elements(communicator_.rank());
  if (storage.on_host) on_host_.emplace(memory.device(), accumulator, type, std::clamp<std::int64_t>(elements, 1, HostAdamw::kSlice));
  const Memory of_states = storage.on_host ? Memory() : memory;
  for (Tensor* tensor : {&master_, &exp_avg_, &exp_avg_sq_}) *tensor = Tensor::zeros({elements}, accumulator, of_states);
  gradient_ = Tensor::zeros({elements}, accumulator, memory);
  if (storage.weights) weights_ = Tensor({elements}, type, memory);
  if (on_device) {
    const std::int64_t others = communicator_.size() - 1;
    const auto room = static_cast<std::int64_t>(storage.inbox_bytes / size_of(accumulator)) / std::max<std::int64_t>(1, others);
    const std::int64_t needed = (shards_.largest_part() + kAlignedElements - 1) / kAlignedElements;
    inbox_ = Tensor({others, kAlignedElements * std::clamp<std::int64_t>(room / kAlignedElements, 1, needed)}, accumulator, memory);
  }
}

void ShardedAdamw::initialise(std::uint64_t seed, StreamView stream) {
  initialise([seed](const Parameter& parameter, std::int64_t first, TensorView to) { initial_values(parameter, seed, first, to); }, stream);
}

void ShardedAdamw::initialise(const StartValues& start, StreamView stream) {
  const StreamView of_states = stream_of_states(stream);
  const bool here = of_states.device().kind == DeviceKind::cpu;
  const Tensor staged = here ? Tensor() : Tensor(master_.shape(), master_.dtype(), Memory());
  const TensorView values = here ? master() : staged.view();
  const std::vector<OwnTensor> tensors = own_tensors(*parameters_, shards_, communicator_.rank());
  std::exception_ptr failure;  // one that left the loop would end the process
#pragma omp parallel for schedule(dynamic)
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const auto& [parameter, part] = tensors[i];
    try {
      start(*parameter, part.begin - parameter->offset, values.slice(0, part.offset, part.count));
    } catch (...) {
#pragma omp critical
      failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
  if (!here) upload(values, master(), stream);
  for (const Tensor* moments : {&exp_avg_, &exp_avg_sq_}) fill_zero(*moments, of_states);
}

void ShardedAdamw::publish(TensorView weights, StreamView stream) const {
  for (const Shards::Part& part : own_parts()) {
    const TensorView from = own(master_, part), to = working(part, weights);
    if (on_host_) {
      upload(from, to, stream);
    } else {
      kernels::copy(as_row(from), as_row(to), stream);
    }
  }
  gather(weights, stream);
}

/// Where the working weights of a part of the shard go.
TensorView ShardedAdamw::working(const Shards::Part& part, const TensorView& weights) const {
  return weights_.empty() ? weights.slice(0, part.begin, part.count) : own(weights_, part);
}

void ShardedAdamw::gather_section(std::size_t section, TensorView weights, StreamView stream) const {
  communicator_.all_gather(own(weights_, own_parts()[section]), weights, shards_.counts(section), stream);
}

void ShardedAdamw::gather(TensorView weights, StreamView stream) const {
  if (!weights_.empty()) return;
  const std::span<const Section> sections = parameters_->sections();
  for (std::size_t i = 0; i < sections.size(); ++i) {
    const Shards::Part& part = own_parts()[i];
    const TensorView whole = weights.slice(0, sections[i].begin, sections[i].elements);
    communicator_.all_gather(weights.slice(0, part.begin, part.count), whole, shards_.counts(i), stream);
  }
}

/// The communicator's reduce_scatter, which sums on the host only, and on a device the same sum in the same order.
void ShardedAdamw::sum(std::size_t section, ConstTensorView gradients, kernels::Update update, StreamView stream) {
  if (stream.device().kind == DeviceKind::cpu) {
    const TensorView sum = own(gradient_, own_parts()[section]);
    const bool overwrite = update == kernels::Update::overwrite;
    const Tensor more = overwrite ? Tensor() : Tensor(sum.shape(), sum.dtype(), Memory());
    communicator_.reduce_scatter(gradients, overwrite ? sum : more.view(), shards_.counts(section), stream);
    if (!overwrite) kernels::add(as_row(more.view()), as_row(sum), stream);
    return;
  }
  std::int64_t most = 0;
  for (const std::int64_t count : shards_.counts(section)) most = std::max(most, count);
  for (std::int64_t first = 0; first < most; first += inbox_slice()) sum_slice(section, gradients, first, update, stream);
}

void ShardedAdamw::sum_slice(std::size_t section, ConstTensorView gradients, std::int64_t first, kernels::Update update,
                             StreamView stream) {
  const auto slice_of = [&](const auto& part) {
    const std::int64_t begin = std::min(first, part.elements());
    return part.slice(0, begin, std::min(inbox_slice(), part.elements() - begin));
  };
  const std::int64_t section_begin = parameters_->sections()[section].begin;
  const TensorView sum = slice_of(own(gradient_, own_parts()[section]));
  std::vector<comm::Send> sends;
  std::vector<comm::Receive> receives;
  std::vector<ConstTensorView> summands;
  for (int rank = 0; rank < communicator_.size(); ++rank) {
    const Shards::Part& part = shards_.part(section, rank);
    const ConstTensorView theirs = slice_of(gradients.slice(0, part.begin - section_begin, part.count));
    if (rank == communicator_.rank()) {
      summands.push_back(theirs);
      continue;
    }
    const TensorView place = inbox_.view().slice(0, std::ssize(receives), 1).reshape({inbox_slice()}).slice(0, 0, sum.elements());
    sends.push_back({rank, theirs.bytes(), theirs.size_bytes()});
    receives.push_back({rank, place.bytes(), place.size_bytes()});
    summands.push_back(place);
  }
  communicator_.exchange(sends, receives, {.operation = "sum of gradients", .lane = comm::kCollectiveLane}, stream).wait();
  const auto first_one = update == kernels::Update::overwrite ? kernels::copy : kernels::add;
  first_one(as_row(summands.front()), as_row(sum), stream);
  for (std::size_t rank = 1; rank < summands.size(); ++rank) kernels::add(as_row(summands[rank]), as_row(sum), stream);
}

void ShardedAdamw::sum(ConstTensorView gradients, StreamView stream) {
  const std::span<const Section> sections = parameters_->sections();
  for (std::size_t i = 0; i < sections.size(); ++i)
    sum(i, gradients.slice(0, sections[i].begin, sections[i].elements), kernels::Update::overwrite, stream);
}

double ShardedAdamw::norm(StreamView stream) const {
  double squares = kernels::sum_of_squares(gradient_, stream);
  communicator_.throw_if_failed();
  communicator_.all_reduce(TensorView(reinterpret_cast<std::byte*>(&squares), DType::f64, {1}), comm::Reduce::sum, Stream());
  return std::sqrt(squares);
}

void ShardedAdamw::update(const OptimizerConfig& config, double learning_rate, double gradient_scale, std::int64_t step, TensorView weights,
                          StreamView stream) {
  check(config);
  kernels::AdamwOptions options{.learning_rate = learning_rate, .beta1 = config.betas[0], .beta2 = config.betas[1]};
  options.step = step;
  options.gradient_scale = gradient_scale;
  std::vector<HostAdamw::Run> runs;
  for (const auto& [parameter, part] : runs_of_equal_decay(own_tensors(*parameters_, shards_, communicator_.rank()))) {
    runs.push_back({own(master_, part), own(exp_avg_, part), own(exp_avg_sq_, part), own(gradient_, part), working(part, weights),
                    parameter->decays() ? config.weight_decay : 0.0});
  }
  if (on_host_) {
    on_host_->update(runs, options, stream);
  } else {
    for (const HostAdamw::Run& run : runs) {
      options.weight_decay = run.weight_decay;
      kernels::adamw(run.master, run.m, run.v, run.gradient, run.working, options, stream);
    }
  }
  gather(weights, stream);
}

void ShardedAdamw::throw_not_finite(std::int64_t step, StreamView stream) const {
  const Tensor gradient = to_host(gradient_, stream);
  std::string name;
  for (const auto& [parameter, part] : own_tensors(*parameters_, shards_, communicator_.rank())) {
    if (name.empty() && !all_finite(own(gradient, part))) name = parameter->name;
  }
  const std::vector<std::string> names = communicator_.all_gather_bytes(name, Stream());
  std::string where = "the norm overflows although every element is finite";
  for (const Parameter& parameter : parameters_->all()) {
    const auto rank = std::ranges::find(names, parameter.name);
    if (rank == names.end()) continue;
    where = fmt::format("first in {} (shard of rank {})", parameter.name, rank - names.begin());
    break;
  }
  throw InvalidArgument(fmt::format(
      "train: the gradient of step {} is not finite: {}; lower optimizer.learning_rate or raise optimizer.warmup_steps", step, where));
}

}  // namespace periplus::train
