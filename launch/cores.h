#pragma once

#include "runtime/comm/communicator.h"

/// Which cores a process computes with, where several are on one host.
namespace periplus::launch {

/// Threads for a process that may use `own` cores, where all processes of its host together may use `together`, counted once, and
/// `sum`, counted for each process: its own cores if nobody shares them, else its part.
int share_of_cores(int own, int together, int sum);

/// An OpenMP runtime knows the cores that its own process may use. Processes that are not bound may use the same ones, and with all
/// of them each would be several times slower than with its share: this sets the thread's team to that, unless OMP_NUM_THREADS is set.
/// Collective over `ranks`, which are processes.
void share_cores(const comm::Communicator& ranks);

}  // namespace periplus::launch
