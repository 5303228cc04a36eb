#pragma once

#include "parallel/train/config.h"
#include "parallel/train/planner_costs.h"
#include "runtime/comm/communicator.h"
#include "runtime/device.h"

namespace periplus::launch {

/// The machine that a training run with a planner plans for, equal on all ranks: parallel.machine, which rank 0 reads; else, on
/// resume, machine.toml of the run folder; else this one, measured with the model's shapes (calibrate.h, 1 s to 10 s). Collective.
/// Errors: InvalidArgument, thrown on all ranks, for a file that cannot be used, and for GPUs without parallel.machine.
train::MachineDescription planner_machine(const train::Config& config, bool resume, const comm::Communicator& communicator, Device device);

/// Whether planner_machine will have to measure, with these options.
bool measures_machine(const train::Config& config, bool resume);

}  // namespace periplus::launch
