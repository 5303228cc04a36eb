#pragma once

#include <string>

/// The only door of `launch` to MPI itself; ranks_mpi.cpp or, in a build without MPI, ranks_mpi_absent.cpp.
namespace periplus::launch {

struct MpiWorld {
  int rank = 0;
  int size = 1;
};

/// MPI_Init_thread with MPI_THREAD_FUNNELED: the calling thread is the one that may communicate.
/// Errors: BackendUnavailable without MPI in the build or if MPI offers less.
MpiWorld start_mpi();
/// MPI_Finalize. Collective.
void finish_mpi();
/// Ends all processes of the job with this exit code.
[[noreturn]] void abort_mpi(int code);

struct MpiFacts {
  bool built = false;
  std::string text;  ///< Library version, or why there is none.
};
/// Usable without start_mpi.
MpiFacts describe_mpi();

}  // namespace periplus::launch
