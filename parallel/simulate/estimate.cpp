#include "parallel/simulate/estimate.h"

#include <algorithm>
#include <optional>
#include <string_view>

#include <fmt/format.h>

#include "runtime/error.h"

namespace periplus::simulate {
namespace {

bool fits(const Shape& shape, const Machine& machine, const Training& training, double workspace = 0) {
  return memory_of(shape, training, workspace).total() <= machine.memory_bytes;
}

/// From the least recomputation and ZeRO stage on, then with activations and at last the optimizer on the host, those that fit as far as is
/// known before attention is planned.
std::vector<Training> fitted(const Shape& shape, const Machine& machine, Training training) {
  std::vector<Training> result;
  const auto add_stages = [&](Recompute recompute, bool activations, bool optimizer) {
    training.recompute = recompute, training.checkpoints_on_host = activations, training.optimizer_on_host = optimizer;
    for (const int zero : {1, 2, 3}) {
      training.zero = zero;
      if (fits(shape, machine, training)) result.push_back(training);
    }
  };
  add_stages(Recompute::but_hidden, false, false);
  add_stages(Recompute::but_attention, false, false);
  if (machine.host_bytes_per_second > 0) {
    add_stages(Recompute::but_attention, true, false);
    add_stages(Recompute::but_attention, true, true);
  }
  return result;
}

/// The first that fits with the workspace of its plans too; nothing if none does, or the strategy cannot plan it.
std::optional<Candidate> first_that_fits(const Shape& shape, const Machine& machine, const std::vector<Training>& ways,
                                         const AttentionOptions& how) {
  for (Training training : ways) {
    training.attention = how;
    try {
      Iteration iteration = simulate_iteration(shape, machine, training);
      if (iteration.memory.total() <= machine.memory_bytes) return Candidate{training, std::move(iteration)};
    } catch (const InvalidArgument&) {
      if (how.strategy == AttentionOptions{}.strategy) throw;  // the ring can always be planned: the problem itself is wrong
      return std::nullopt;
    }
  }
  return std::nullopt;
}

bool has_softmax(const Shape& shape) { return shape.pattern.find('S') != std::string::npos; }

Training start(const Shape& shape, const EstimateOptions& options, int devices, int context) {
  Training training;
  training.tokens = options.tokens, training.micro_batches = options.micro_batches;
  training.context = context, training.replicas = devices / context;
  training.by_section = training.tiled_ffn = training.tiled_loss = true;
  if (!has_softmax(shape)) training.layout = LayoutKind::contiguous;  // a state passes once through each rank
  return training;
}

std::vector<int> degrees(int devices) {
  std::vector<int> result;
  for (int degree = 1; degree <= std::min(devices, kMostContext); degree *= 2)
    if (devices % degree == 0) result.push_back(degree);
  if (result.back() != devices && devices <= kMostContext) result.push_back(devices);
  return result;
}

/// Ways to share a sequence. A strategy that the shape does not allow is refused when it is planned.
std::vector<AttentionOptions> strategies(const Shape& shape, const Machine& machine, int context) {
  std::vector<AttentionOptions> result(1);
  if (context == 1 || !has_softmax(shape)) return result;
  for (const std::string_view name : {"ulysses", "gather_kv"}) result.push_back({.strategy = std::string(name)});
  for (int inner = 2; inner < context && inner <= machine.devices_per_node; inner *= 2) {
    if (context % inner == 0) result.push_back({.strategy = "usp", .head_ranks = inner});
  }
  return result;
}

/// Of the ring's plans, bytes for each token of the rank that needs most: they grow with the tokens, hardly with the ranks.
double workspace_for_a_token(const Shape& shape, const Machine& machine, Training training) {
  constexpr std::int64_t kRows = 1 << 20;
  training.context = std::min(training.context, 64);
  training.tokens = kRows * training.context;
  return simulate_iteration(shape, machine, training).workspace / kRows;
}

}  // namespace

std::int64_t longest_that_fits(const Shape& shape, const Machine& machine, Training training, double workspace) {
  std::int64_t low = 0, high = std::int64_t{1} << 40;
  training.documents.clear();
  while (low < high) {
    training.tokens = low + (high - low + 1) / 2;
    if (fits(shape, machine, training, workspace * static_cast<double>(training.tokens) / training.context)) {
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
    const std::vector<Training> ways = fitted(shape, machine, start(shape, options, devices, context));
    if (ways.empty()) continue;
    if (tried++ == kDegrees) break;
    for (const AttentionOptions& how : strategies(shape, machine, context)) {
      if (auto candidate = first_that_fits(shape, machine, ways, how)) result.candidates.push_back(std::move(*candidate));
    }
  }
  std::ranges::stable_sort(result.candidates, std::greater(), [](const Candidate& c) { return c.iteration.tokens_per_second(c.training); });
  Training most = start(shape, options, devices, devices);
  const double workspace = workspace_for_a_token(shape, machine, most);
  for (const int zero : {2, 3}) {  // on few devices stage 3 needs more room for a layer's weights than it spares
    most.zero = zero, most.checkpoints_on_host = most.optimizer_on_host = false;
    result.longest = std::max(result.longest, longest_that_fits(shape, machine, most, workspace));
    if (machine.host_bytes_per_second <= 0) continue;
    most.checkpoints_on_host = most.optimizer_on_host = true;
    most.tokens = longest_that_fits(shape, machine, most, workspace);
    if (most.tokens <= result.longest_on_host) continue;
    result.longest_on_host = most.tokens, result.host_bytes = memory_of(shape, most).host;
  }
  return result;
}

}  // namespace periplus::simulate
