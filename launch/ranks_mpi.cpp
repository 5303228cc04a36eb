#include "launch/ranks_mpi.h"

#include <array>
#include <cstdlib>

#include <mpi.h>
#include <omp.h>
#include <sched.h>

#include "launch/ranks.h"
#include "runtime/error.h"

namespace periplus::launch {
namespace {

/// An OpenMP runtime knows the cores that its own process may use. Processes that are not bound may use the same ones, and with
/// all of them each would be several times slower than with its share.
void share_cores() {
  cpu_set_t own;
  if (std::getenv("OMP_NUM_THREADS") != nullptr || sched_getaffinity(0, sizeof(own), &own) != 0) return;
  MPI_Comm host = MPI_COMM_NULL;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host);
  cpu_set_t together;
  MPI_Allreduce(&own, &together, sizeof(own), MPI_BYTE, MPI_BOR, host);
  const int count = CPU_COUNT(&own);
  int sum = 0;
  MPI_Allreduce(&count, &sum, 1, MPI_INT, MPI_SUM, host);
  MPI_Comm_free(&host);
  omp_set_num_threads(share_of_cores(count, CPU_COUNT(&together), sum));
}

}  // namespace

MpiWorld start_mpi() {
  int provided = MPI_THREAD_SINGLE;
  if (MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS) {
    throw BackendUnavailable("MPI_Init_thread failed; periplus doctor shows what this machine has");
  }
  if (provided < MPI_THREAD_FUNNELED) {
    throw BackendUnavailable("this MPI library offers no MPI_THREAD_FUNNELED, which kernels with threads need; use Open MPI or MPICH");
  }
  MpiWorld world;
  MPI_Comm_rank(MPI_COMM_WORLD, &world.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &world.size);
  share_cores();
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

}  // namespace periplus::launch
