#pragma once

#include <functional>
#include <span>

#include "runtime/comm/communicator.h"

namespace periplus::train {

/// Runs `work` and throws on every rank if it failed on any: the error of the lowest such rank, with its kind and rank.
/// For work that touches files: without it one rank would stop and the others would wait for its messages. Collective.
void all_or_none(const comm::Communicator& communicator, const std::function<void()>& work);

/// The same for work that only rank 0 does.
void on_rank0(const comm::Communicator& communicator, const std::function<void()>& work);

/// values := their sum (or largest) over all ranks. In host memory, whatever the ranks compute on. Collective.
void all_reduce(const comm::Communicator& communicator, std::span<double> values, comm::Reduce reduce);

}  // namespace periplus::train
