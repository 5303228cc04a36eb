#pragma once

#include "parallel/train/config.h"
#include "parallel/train/planner_costs.h"
#include "runtime/comm/communicator.h"
#include "runtime/device.h"

namespace periplus::launch {

/// Whether a run's planner or strategy auto wants to know the machine.
bool needs_machine(const train::Config& config, int ranks);

/// The machine that a training run plans for, equal on all ranks: parallel.machine, which rank 0 reads; else, on
/// resume, machine.toml of the run folder; else this one, measured with the model's shapes (calibrate.h, 1 s to 10 s). Collective.
/// Errors: InvalidArgument, thrown on all ranks, for a file that cannot be used, and for GPUs without parallel.machine.
train::MachineDescription run_machine(const train::Config& config, bool resume, const comm::Communicator& communicator, Device device);

/// Whether that one will be measured, with these options.
bool measures_machine(const train::Config& config, bool resume);

}  // namespace periplus::launch
