#include "parallel/train/planner_costs.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <utility>

#include <fmt/format.h>

#include "parallel/train/model/model.h"
#include "parallel/train/model/tiles.h"
#include "parallel/train/optimizer.h"
#include "runtime/error.h"

namespace periplus::train {

simulate::Shape simulated_shape(const ModelConfig& model, DType dtype) {
  simulate::Shape shape{.name = "trained", .layers = static_cast<int>(model.layers), .hidden = static_cast<int>(model.hidden)};
  shape.heads = static_cast<int>(model.heads), shape.kv_heads = static_cast<int>(model.kv_heads);
  shape.head_size = static_cast<int>(model.head_size), shape.ffn = static_cast<int>(model.ffn), shape.ffn_matrices = 3;
  shape.vocabulary = model.vocabulary, shape.pattern = model.pattern_of_layers(), shape.tie_embeddings = model.tie_embeddings;
  shape.element_bytes = size_of(dtype) == 2 ? 2 : 4;  // the simulator has no f64
  return shape;
}

simulate::Training simulated_training(const Config& config, int ranks, std::vector<std::int64_t> documents) {
  simulate::Training training;
  training.tokens = std::accumulate(documents.begin(), documents.end(), std::int64_t{0}), training.documents = std::move(documents);
  training.context = ranks, training.layout = layout_kind_from_string(config.parallel.layout);
  training.attention = config.parallel.attention, training.linear = config.parallel.linear;
  if (config.run.keeps_hidden()) training.recompute = simulate::Recompute::but_hidden;
  training.checkpoints_on_host = config.run.offload_activations, training.optimizer_on_host = config.run.offload_optimizer;
  training.zero = static_cast<int>(config.parallel.zero_stage);
  training.by_section = training.tiled_ffn = training.tiled_loss = true;
  return training;
}

namespace {

/// Of one sequence, whatever strategy its group will take.
simulate::Training training_of(const Config& config, std::int64_t tokens, int ranks) {
  simulate::Training training = simulated_training(config, ranks, {tokens});
  training.attention = {}, training.layout = LayoutKind::zigzag;
  return training;
}

/// Of one micro-batch of one sequence on one rank: a second one adds it without what a step costs once.
double micro_batch_seconds(const Config& config, const simulate::Shape& shape, const simulate::Machine& machine, std::int64_t tokens) {
  simulate::Training training = training_of(config, tokens, 1);
  const double once = simulate::simulate_iteration(shape, machine, training).seconds;
  training.micro_batches = 2;
  return simulate::simulate_iteration(shape, machine, training).seconds - once;
}

/// Coefficients c of 1, s, s^2 that make sum((c . (1, s, s^2) / t - 1)^2) least: normal equations, eliminated with pivots.
std::array<double, 3> fit(const std::vector<double>& lengths, const std::vector<double>& times) {
  const double longest = lengths.back();  // lengths are scaled by it, so that the equations are well conditioned
  std::array<std::array<double, 4>, 3> a{};
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    const double s = lengths[i] / longest;
    const std::array<double, 3> row = {1 / times[i], s / times[i], s * s / times[i]};
    for (std::size_t j = 0; j < 3; ++j) {
      for (std::size_t k = 0; k < 3; ++k) a[j][k] += row[j] * row[k];
      a[j][3] += row[j];
    }
  }
  for (std::size_t j = 0; j < 3; ++j) {
    std::swap(a[j], *std::max_element(a.begin() + static_cast<std::ptrdiff_t>(j), a.end(),
                                      [j](const auto& x, const auto& y) { return std::abs(x[j]) < std::abs(y[j]); }));
    for (std::size_t i = 0; i < 3; ++i) {
      if (i == j) continue;
      const double factor = a[i][j] / a[j][j];
      for (std::size_t k = j; k < 4; ++k) a[i][k] -= factor * a[j][k];
    }
  }
  return {a[0][3] / a[0][0], a[1][3] / a[1][1] / longest, a[2][3] / a[2][2] / (longest * longest)};
}

/// Bytes of a rank's token. Two ranks, so that what attention holds of others is counted.
double activation_bytes(const Config& config, const simulate::Shape& shape, const simulate::Machine& machine, DType dtype,
                        std::int64_t tokens) {
  const int ranks = std::min(2, machine.devices);
  const simulate::Memory memory = simulate::simulate_iteration(shape, machine, training_of(config, tokens, ranks)).memory;
  const double scale = static_cast<double>(size_of(dtype)) / shape.element_bytes;
  return scale * (memory.checkpoints + memory.working) * ranks / static_cast<double>(tokens);
}

}  // namespace

planner::Model planner_model(const Config& config, DType dtype, const simulate::Machine& machine) {
  constexpr std::int64_t kShortest = 64, kLeastLongest = 1024;
  const simulate::Shape shape = simulated_shape(config.model, dtype);
  std::vector<double> lengths, times;
  const std::int64_t longest = std::max(config.data.context, kLeastLongest);
  for (std::int64_t length = longest; length >= kShortest && lengths.size() < 8; length /= 2) {
    lengths.insert(lengths.begin(), static_cast<double>(length));
    times.insert(times.begin(), micro_batch_seconds(config, shape, machine, length));
  }
  const auto [start, token, pair] = fit(lengths, times);
  planner::Model model{.name = "trained", .layers = shape.layers, .heads = shape.heads, .kv_heads = shape.kv_heads};
  model.hidden = static_cast<int>(shape.q_size());  // of what exchanges of heads move: queries and results
  model.element_bytes = static_cast<int>(size_of(dtype));
  // Of a fit that no rounding may push below 0; a token takes at least its matrices' time.
  model.seconds_per_micro_batch = std::max(0.0, start), model.seconds_per_pair = std::max(0.0, pair);
  model.seconds_per_token = std::max(token, 6 * shape.weights() / machine.kernels.matmul_flops_per_second);
  model.activation_bytes = activation_bytes(config, shape, machine, dtype, longest);
  // The summed gradient; master weights and two moments, unless the host has them; and working weights that are shared out.
  const double accumulators = config.run.offload_optimizer ? 1 : 4;
  const double shared_weights = config.parallel.zero_stage == 3 ? static_cast<double>(size_of(dtype)) : 0;
  model.state_bytes = (accumulators * static_cast<double>(size_of(accumulator_of(dtype))) + shared_weights) *
                      static_cast<double>(ParameterTable(config.model).elements());
  return model;
}

double bytes_of_every_rank(const Config& config, DType dtype, Device device) {
  const ModelConfig& model = config.model;
  const ParameterTable parameters(model);
  const auto all = static_cast<double>(parameters.elements());
  const auto some = static_cast<double>(parameters.sections().front().elements + parameters.largest_layer() +
                                        parameters.sections().back().elements);  // of ParameterBuffers
  const double weights = config.parallel.zero_stage == 3 ? some : all, gradients = config.parallel.zero_stage >= 2 ? some : all;
  const auto storage = static_cast<double>(size_of(dtype)), accumulator = static_cast<double>(size_of(accumulator_of(dtype)));
  const auto hidden = static_cast<double>(model.hidden), ffn = static_cast<double>(model.ffn);
  const double row = hidden * (4 * storage + accumulator) + 4 * ffn * storage;  // LayerScratch
  const double logits = static_cast<double>(loss_rows(model.vocabulary, device) * model.vocabulary) * (storage + accumulator);
  const double inbox = device.kind == DeviceKind::cuda ? std::min(all * accumulator, static_cast<double>(kInboxBytes)) : 0;
  return weights * storage + gradients * accumulator + inbox + static_cast<double>(tile_rows(device)) * row + logits;
}

planner::Machine with_all_degrees(planner::Machine machine) {
  const std::vector<planner::Machine::AllToAll> listed = std::move(machine.all_to_all);
  machine.all_to_all.clear();
  for (int degree = 2; degree <= machine.devices; ++degree) {
    const bool crosses = degree > machine.devices_per_node;
    if (crosses && degree % machine.devices_per_node != 0) continue;
    const auto next = std::ranges::lower_bound(listed, degree, {}, &planner::Machine::AllToAll::degree);
    double rate = machine.link_bytes_per_second;
    if (next != listed.end()) {
      rate = next->bytes_per_second;
    } else if (crosses) {
      // A device's share of its node's cards carries what leaves the node.
      rate = std::min(rate, machine.node_bytes_per_second / (machine.devices_per_node - static_cast<double>(machine.devices_per_node) *
                                                                                            machine.devices_per_node / degree));
    }
    machine.all_to_all.push_back({degree, rate});
  }
  return machine;
}

planner::CostModel planner_costs(const Config& config, DType dtype, const MachineDescription& machine, int ranks, Device device) {
  planner::Machine rest = with_all_degrees(machine.planner);
  const double bytes = bytes_of_every_rank(config, dtype, device);
  if (rest.memory_bytes <= bytes) {
    throw InvalidArgument(fmt::format(
        "train: weights, gradients and temporaries of the model take {:.3g} bytes of every rank, and a device of machine {} has "
        "{:.3g}; take a smaller model or another --machine",
        bytes, rest.name, rest.memory_bytes));
  }
  rest.memory_bytes -= bytes;
  return {planner_model(config, dtype, machine.simulated), rest, {.devices = ranks}};
}

}  // namespace periplus::train
