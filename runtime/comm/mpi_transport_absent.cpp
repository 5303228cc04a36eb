// Stands in for mpi_transport.cpp in builds without MPI.
#include "runtime/comm/mpi_transport.h"
#include "runtime/error.h"

namespace periplus::comm {
namespace {

[[noreturn]] void throw_absent() {
  throw BackendUnavailable(
      "mpi transport: this build has no MPI; install the Debian packages libopenmpi-dev and openmpi-bin and configure with "
      "-DPERIPLUS_WITH_MPI=ON, or use the thread transport");
}

}  // namespace

Communicator make_mpi_world(const TransportOptions&) { throw_absent(); }
Communicator make_mpi_communicator(int, const TransportOptions&) { throw_absent(); }

}  // namespace periplus::comm
