// Machines for tests of planned training.
#pragma once

#include <cstdint>

#include "parallel/train/config.h"
#include "parallel/train/planner_costs.h"

namespace periplus::train {

/// Ranks of one node whose memory holds the states of the model and so many tokens each. Invented speeds: a link on which a group
/// is worth it for long documents only.
inline MachineDescription machine_for(const Config& config, DType dtype, int ranks, double tokens_per_rank, Device device = {}) {
  MachineDescription machine{.planner = {}, .simulated = {}, .text = "# of a test\n"};
  simulate::Machine& simulated = machine.simulated;
  simulated.name = "test", simulated.devices = simulated.devices_per_node = ranks, simulated.memory_bytes = 1e12;
  simulated.links.inside = {.bytes_per_second = 1e7, .latency_seconds = 1e-5};
  simulated.links.between = simulated.links.inside, simulated.node_bytes_per_second = 1e7;
  simulate::Kernels& kernels = simulated.kernels;
  kernels.matmul_flops_per_second = 1e9, kernels.memory_bytes_per_second = 1e10, kernels.launch_seconds = 1e-6;
  kernels.forward = kernels.backward = {{64}, {1e9}, {1e9}};
  const planner::Model model = planner_model(config, dtype, simulated);
  planner::Machine& planned = machine.planner;
  planned.name = "test", planned.devices = planned.devices_per_node = ranks;
  planned.memory_bytes = bytes_of_every_rank(config, dtype, device) + model.state_bytes / ranks + model.activation_bytes * tokens_per_rank;
  planned.link_bytes_per_second = planned.stream_bytes_per_second = planned.node_bytes_per_second = 1e7, planned.hop_seconds = 1e-5;
  return machine;
}

}  // namespace periplus::train
