#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/planner/cost.h"
#include "parallel/simulate/iteration.h"
#include "parallel/simulate/machine.h"
#include "parallel/simulate/shape.h"
#include "parallel/train/config.h"
#include "runtime/device.h"
#include "runtime/dtype.h"

namespace periplus::train {

/// A machine's file, as the planner and the simulator read it.
struct MachineDescription {
  planner::Machine planner;
  simulate::Machine simulated;
  std::string text;
};

/// The model for the simulator, weights and activations in `dtype`.
simulate::Shape simulated_shape(const ModelConfig& model, DType dtype);

/// A step of one row of documents over all ranks.
simulate::Training simulated_training(const Config& config, int ranks, std::vector<std::int64_t> documents);

/// What the planner needs to know of training the model: times as simulate_iteration predicts them for one rank, as
/// micro_batch + token * s + pair * s^2 by least squares of the relative error over lengths s up to the context; memory of the
/// states that ShardedAdamw shares out, and of a token as the simulator counts it.
/// Errors: InvalidArgument where the simulator cannot do this.
planner::Model planner_model(const Config& config, DType dtype, const simulate::Machine& machine);

/// Bytes that every rank holds whatever it works on: weights and gradients that are not shared out, and tiles of temporaries.
double bytes_of_every_rank(const Config& config, DType dtype, Device device);

/// The machine with groups of every size inside a node and of every number of whole nodes. A size that its file does not list has
/// the all-to-all of the next larger one that it does.
planner::Machine with_all_degrees(planner::Machine machine);

/// All of this for `ranks` ranks on devices like `device`. Errors: InvalidArgument that names what does not fit.
planner::CostModel planner_costs(const Config& config, DType dtype, const MachineDescription& machine, int ranks, Device device = {});

}  // namespace periplus::train
