#include "parallel/simulate/estimate.h"

#include <algorithm>
#include <optional>
#include <string_view>

#include <fmt/format.h>

#include "runtime/error.h"

namespace periplus::simulate {
namespace {

bool fits(const Shape& shape, const Machine& machine, const Training& training) {
  return memory_of(shape, training).total() <= machine.memory_bytes;
}

/// The least recomputation and ZeRO stage that fit; nothing if none does.
std::optional<Training> fitted(const Shape& shape, const Machine& machine, Training training) {
  for (const Recompute recompute : {Recompute::none, Recompute::but_attention, Recompute::all}) {
    for (const int zero : {1, 2, 3}) {
      training.recompute = recompute, training.zero = zero;
      if (fits(shape, machine, training)) return training;
    }
  }
  return std::nullopt;
}

Training start(const EstimateOptions& options, int devices, int context) {
  Training training;
  training.tokens = options.tokens, training.micro_batches = options.micro_batches;
  training.context = context, training.replicas = devices / context, training.tiled_loss = true;
  return training;
}

std::vector<int> degrees(int devices) {
  std::vector<int> result;
  for (int degree = 1; degree <= devices; degree *= 2)
    if (devices % degree == 0) result.push_back(degree);
  if (result.back() != devices) result.push_back(devices);
  return result;
}

/// Ways to share a sequence. A strategy that the shape does not allow is refused when it is planned.
std::vector<AttentionOptions> strategies(const Machine& machine, int context) {
  std::vector<AttentionOptions> result(1);
  if (context == 1) return result;
  for (const std::string_view name : {"ulysses", "gather_kv"}) result.push_back({.strategy = std::string(name)});
  for (int inner = 2; inner < context && inner <= machine.devices_per_node; inner *= 2) {
    if (context % inner == 0) result.push_back({.strategy = "usp", .head_ranks = inner});
  }
  return result;
}

}  // namespace

std::int64_t longest_that_fits(const Shape& shape, const Machine& machine, Training training) {
  std::int64_t low = 0, high = std::int64_t{1} << 40;
  training.documents.clear();
  while (low < high) {
    training.tokens = low + (high - low + 1) / 2;
    if (fits(shape, machine, training)) {
      low = training.tokens;
    } else {
      high = training.tokens - 1;
    }
  }
  return low;
}

Estimate estimate(const Shape& shape, const Machine& machine, const EstimateOptions& options) {
  const int devices = options.devices == 0 ? machine.devices : options.devices;
  if (devices < 1 || devices > machine.devices)
    throw InvalidArgument(fmt::format("estimate: {} devices: machine {} has {}", devices, machine.name, machine.devices));
  if (options.tokens < 1) throw InvalidArgument(fmt::format("estimate: {} tokens; give at least one", options.tokens));
  Estimate result;
  constexpr int kDegrees = 3;
  int tried = 0;
  for (const int context : degrees(devices)) {
    const std::optional<Training> training = fitted(shape, machine, start(options, devices, context));
    if (!training) continue;
    if (tried++ == kDegrees) break;
    for (const AttentionOptions& how : strategies(machine, context)) {
      Candidate candidate{.training = *training, .iteration = {}};
      candidate.training.attention = how;
      if (shape.pattern.find('S') == std::string::npos) candidate.training.layout = LayoutKind::contiguous;
      try {
        candidate.iteration = simulate_iteration(shape, machine, candidate.training);
      } catch (const InvalidArgument&) {
        if (how.strategy == AttentionOptions{}.strategy) throw;  // the ring can always be planned: the problem itself is wrong
        continue;
      }
      // The plan's workspace comes on top of what `fitted` knew.
      if (candidate.iteration.memory.total() <= machine.memory_bytes) result.candidates.push_back(std::move(candidate));
      if (shape.pattern.find('S') == std::string::npos) break;
    }
  }
  std::ranges::stable_sort(result.candidates, std::greater(), [](const Candidate& c) { return c.iteration.tokens_per_second(c.training); });
  Training most = start(options, devices, devices);
  most.zero = 3, most.recompute = Recompute::all;
  result.longest = longest_that_fits(shape, machine, most);
  if (machine.host_bytes_per_second > 0) {
    most.checkpoints_on_host = most.optimizer_on_host = true;
    result.longest_on_host = longest_that_fits(shape, machine, most);
  }
  return result;
}

}  // namespace periplus::simulate
