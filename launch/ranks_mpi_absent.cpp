#include <cstdlib>

#include "launch/ranks_mpi.h"
#include "runtime/error.h"

namespace periplus::launch {
namespace {

constexpr const char* kAbsent =
    "this build has no MPI; install the Debian packages libopenmpi-dev and openmpi-bin and configure again with PERIPLUS_WITH_MPI=ON";

}  // namespace

MpiWorld start_mpi() { throw BackendUnavailable(kAbsent); }
void finish_mpi() {}
void abort_mpi(int code) { std::_Exit(code); }
MpiFacts describe_mpi() { return {false, kAbsent}; }

}  // namespace periplus::launch
