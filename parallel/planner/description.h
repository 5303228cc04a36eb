#pragma once

#include <cstdint>
#include <string>
#include <vector>

/// What the planner knows of a model and a machine: measured numbers, read from files (examples/models, examples/machines).
namespace periplus::planner {

/// One training step of a model, by tokens. Times are of one device with all layers, forward and backward (and recompute, if
/// the model trains with it).
struct Model {
  std::string name;
  int layers = 0, hidden = 0, heads = 0, kv_heads = 0;
  int element_bytes = 2;               ///< Of activations in exchanges.
  double seconds_per_pair = 0;         ///< Attention of a sequence of s tokens takes s * s times this.
  double seconds_per_token = 0;        ///< All else.
  double seconds_per_micro_batch = 0;  ///< What every micro-batch costs every device, with or without tokens.
  double activation_bytes = 0;         ///< A token's, kept for backward.
  double state_bytes = 0;              ///< Weights, gradients and optimizer of the whole model; each of N devices holds 1/N.

  int head_size() const noexcept { return hidden / heads; }
};

/// A set of equal nodes.
struct Machine {
  struct AllToAll {
    int degree = 0;
    double bytes_per_second = 0;
  };

  std::string name;
  int devices = 0, devices_per_node = 0;
  double memory_bytes = 0;             ///< A device's, for states and activations.
  std::vector<AllToAll> all_to_all;    ///< Per device by size of the group, ascending. A group has one of these sizes, or is one device.
  double link_bytes_per_second = 0;    ///< Between two devices of a node, each way.
  double stream_bytes_per_second = 0;  ///< One stream between two nodes.
  double node_bytes_per_second = 0;    ///< All streams out of a node together.
  double hop_seconds = 0;              ///< What a hop of a ring adds to its transfer.
  double ring_efficiency = 1;          ///< Rate of attention in blocks of a ring over its rate in one piece.
};

/// Errors: InvalidArgument that names the file's key and value.
void check(const Model& model);
void check(const Machine& machine);

}  // namespace periplus::planner
