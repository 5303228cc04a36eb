#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "parallel/planner/cost.h"

/// Models, machines and batches for tests of the planner. Invented numbers of the right order.
namespace periplus::planner {

inline Model small_model() {
  return {.name = "small",
          .layers = 4,
          .hidden = 512,
          .heads = 8,
          .kv_heads = 2,
          .element_bytes = 2,
          .seconds_per_pair = 2e-9,
          .seconds_per_token = 1e-5,
          .seconds_per_micro_batch = 0.02,
          .activation_bytes = 1e5,
          .state_bytes = 1e9};
}

/// devices of nodes of four; 1.25e8 bytes hold about 1000 tokens a device on 8.
inline Machine small_machine(int devices, std::vector<int> degrees = {2, 4, 8}) {
  Machine machine{.name = "small",
                  .devices = devices,
                  .devices_per_node = 4,
                  .memory_bytes = 2.25e8,
                  .all_to_all = {},
                  .link_bytes_per_second = 2e10,
                  .stream_bytes_per_second = 2e9,
                  .node_bytes_per_second = 4e9,
                  .hop_seconds = 1e-5,
                  .ring_efficiency = 0.9};
  for (const int degree : degrees) machine.all_to_all.push_back({degree, degree <= 4 ? 8e9 : 1e9});
  return machine;
}

/// Lengths with a tail: uniform in their logarithm up to `longest`, some zero.
inline std::vector<std::int64_t> random_lengths(std::mt19937_64& random, int count, std::int64_t longest) {
  std::vector<std::int64_t> lengths;
  for (int k = 0; k < count; ++k) {
    const double share = static_cast<double>(random() >> 11) * 0x1p-53;
    const double length = std::exp2(share * std::log2(static_cast<double>(longest) + 1)) - 1;
    lengths.push_back(random() % 20 == 0 ? 0 : static_cast<std::int64_t>(length));
  }
  return lengths;
}

}  // namespace periplus::planner
