#pragma once

#include <span>
#include <string>

#include "launch/topology.h"
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

/// What a thread has of a core while all threads of all ranks of its host compute: 1, or less where they outnumber the cores.
/// Collective over `ranks`, which may be threads of one process.
double part_of_a_core(const comm::Communicator& ranks);

/// Where a process may compute, and the hardware threads near its GPU; empty if that is not known.
struct RankCores {
  std::string host;
  Cpus allowed, near;
};
/// Where `rank` shall compute: near its GPU, on cores that it shares out evenly with the ranks of its host that are there too. Empty: it
/// stays where it is, because nothing is known, because it is bound to other cores, or because it is near and alone there already.
Cpus cores_near_gpu(std::span<const RankCores> ranks, int rank, const Topology& topology);

/// Binds the calling thread, and with it those that it starts later, to the cores near the GPU at this address, unless OMP_PROC_BIND,
/// OMP_PLACES or GOMP_CPU_AFFINITY say where threads run. Collective over `ranks`, which are processes with a GPU each.
void bind_near_gpu(const comm::Communicator& ranks, const std::string& pci_bus_id, const Topology& topology);

/// Where the calling thread may compute.
Cpus allowed_cpus();

}  // namespace periplus::launch
