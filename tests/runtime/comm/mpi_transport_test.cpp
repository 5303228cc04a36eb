// The conformance suite over MPI. A rank that fails ends the job with MPI_Abort: its peers could only wait for it.
#include "runtime/comm/mpi_transport.h"

#include <cstdio>
#include <exception>

#include <mpi.h>

#include "conformance.h"
#include "runtime/error.h"

namespace {

using namespace periplus;
using namespace periplus::comm;

void check_refused_before_initialisation() {
  const std::string message = conformance::message_of<InvalidArgument>([] { make_mpi_world(); });
  conformance::require_contains(message, "MPI_Init_thread");
}

void check_subgroup() {
  int world_rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &world_rank);
  MPI_Comm half = MPI_COMM_NULL;
  MPI_Comm_split(MPI_COMM_WORLD, world_rank % 2, world_rank, &half);
  {
    const Communicator communicator = make_mpi_communicator(MPI_Comm_c2f(half));
    MPI_Comm_free(&half);  // the communicator must own a duplicate
    conformance::require(communicator.rank() == world_rank / 2, "rank in the caller's communicator");
    for (const std::string& name : communicator.all_gather_bytes(world_rank % 2 == 0 ? "even" : "odd", conformance::stream())) {
      conformance::require(name == (world_rank % 2 == 0 ? "even" : "odd"), "messages stay in the subgroup");
    }
  }
}

void check_all() {
  conformance::require(make_mpi_world().transport_name() == "mpi", "transport name");
  check_subgroup();
  for (const conformance::Case& item : conformance::all_cases()) {
    try {
      item.body(make_mpi_world({.deadline = item.deadline}));
    } catch (const std::exception& error) {
      throw std::runtime_error(std::string(item.name) + ": " + error.what());
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  int rank = -1;
  try {
    check_refused_before_initialisation();
    int level = MPI_THREAD_SINGLE;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &level);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    check_all();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "rank %d: %s\n", rank, error.what());
    if (rank < 0) return 1;
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  MPI_Finalize();
  return 0;
}
