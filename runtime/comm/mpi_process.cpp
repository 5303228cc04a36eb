#include "runtime/comm/mpi_process.h"

#include <array>
#include <cstdlib>

#include <mpi.h>

#include "runtime/error.h"

namespace periplus::comm {

int announced_mpi_rank() {
  for (const ProcessManager& manager : kProcessManagers) {
    if (const char* const rank = std::getenv(manager.rank)) return std::atoi(rank);
  }
  return -1;
}

MpiWorld start_mpi() {
  int provided = MPI_THREAD_SINGLE, initialized = 0, finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  if (finalized != 0)
    throw BackendUnavailable("MPI cannot be started again after MPI_Finalize; let one call do all the work of this process");
  if (initialized != 0) {
    MPI_Query_thread(&provided);
  } else if (MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS) {
    throw BackendUnavailable("MPI_Init_thread failed; periplus doctor shows what this machine has");
  }
  if (provided < MPI_THREAD_FUNNELED) {
    throw BackendUnavailable(
        initialized != 0 ? "MPI was started with MPI_Init, but kernels have threads; call MPI_Init_thread with MPI_THREAD_FUNNELED"
                         : "this MPI library offers no MPI_THREAD_FUNNELED, which kernels with threads need; use Open MPI or MPICH");
  }
  MpiWorld world{.started_here = initialized == 0};
  MPI_Comm_rank(MPI_COMM_WORLD, &world.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &world.size);
  return world;
}

void finish_mpi() { MPI_Finalize(); }

void abort_mpi(int code) {
  MPI_Abort(MPI_COMM_WORLD, code);
  std::_Exit(code);
}

MpiFacts describe_mpi() {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
  int length = 0;
  MPI_Get_library_version(text.data(), &length);
  std::string version(text.data(), static_cast<std::size_t>(length));
  return {true, version.substr(0, version.find_first_of(",\n"))};
}

}  // namespace periplus::comm
