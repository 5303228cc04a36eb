#include <algorithm>
#include <chrono>
#include <cmath>

#include <fmt/format.h>
#include <omp.h>

#include "interop/c/handles.h"
#include "runtime/comm/mpi_transport.h"
#include "runtime/comm/nccl_transport.h"
#include "runtime/comm/tcp_transport.h"
#include "runtime/comm/thread_transport.h"
#include "runtime/error.h"

using namespace periplus;

namespace {

comm::TransportOptions options_of(double deadline_seconds) {
  if (!(deadline_seconds >= 0.001 && deadline_seconds <= 1e6))
    throw InvalidArgument(fmt::format("deadline_seconds: {} is not between 0.001 and 1e6", deadline_seconds));
  return {std::chrono::milliseconds(static_cast<std::int64_t>(std::ceil(deadline_seconds * 1e3)))};
}

}  // namespace

int periplus_group_threads(int ranks, double deadline_seconds, periplus_group** groups) {
  return interop::guarded({groups}, [&] {
    if (ranks < 1 || ranks > 1024) throw InvalidArgument(fmt::format("ranks: {} is not between 1 and 1024", ranks));
    std::vector<comm::Communicator> made = comm::make_thread_group(ranks, options_of(deadline_seconds));
    for (std::size_t rank = 0; rank < made.size(); ++rank) groups[rank] = new periplus_group{made[rank]};
  });
}

int periplus_group_mpi(int fortran_handle, double deadline_seconds, periplus_group** group) {
  return interop::guarded({group},
                          [&] { *group = new periplus_group{comm::make_mpi_communicator(fortran_handle, options_of(deadline_seconds))}; });
}

int periplus_group_tcp(int rank, int ranks, const char* host, periplus_share_port share_port, void* user, double deadline_seconds,
                       periplus_group** group) {
  return interop::guarded({host, reinterpret_cast<const void*>(share_port), group}, [&] {
    const comm::TransportOptions options = options_of(deadline_seconds);
    const comm::TcpGroup meeting{.rank = rank,
                                 .size = ranks,
                                 .host = host,
                                 .share_port = [&](std::uint16_t own) { return share_port(own, user); },
                                 .patience = options.deadline};
    *group = new periplus_group{comm::make_tcp_communicator(meeting, options)};
  });
}

int periplus_group_gpu(const periplus_group* processes, int device, double deadline_seconds, periplus_group** group) {
  return interop::guarded({processes, group}, [&] {
    *group = new periplus_group{comm::make_nccl_communicator(device, processes->communicator, options_of(deadline_seconds))};
  });
}

int periplus_group_rank(const periplus_group* group) { return group->communicator.rank(); }
int periplus_group_size(const periplus_group* group) { return group->communicator.size(); }
void periplus_group_abort(const periplus_group* group, const char* reason) { group->communicator.abort(reason); }
void periplus_group_free(periplus_group* group) { delete group; }

void periplus_share_cores(int sharers) { omp_set_num_threads(std::max(1, omp_get_max_threads() / std::max(1, sharers))); }
