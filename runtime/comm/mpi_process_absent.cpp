// Stands in for mpi_process.cpp in builds without MPI.
#include <cstdlib>

#include "runtime/comm/mpi_process.h"
#include "runtime/error.h"

namespace periplus::comm {
namespace {

constexpr const char* kAbsent =
    "this build has no MPI; install the Debian packages libopenmpi-dev and openmpi-bin and configure again with PERIPLUS_WITH_MPI=ON";

}  // namespace

int announced_mpi_rank() { return -1; }
MpiWorld start_mpi() { throw BackendUnavailable(kAbsent); }
void finish_mpi() {}
void abort_mpi(int code) { std::_Exit(code); }
MpiFacts describe_mpi() { return {false, kAbsent}; }

}  // namespace periplus::comm
