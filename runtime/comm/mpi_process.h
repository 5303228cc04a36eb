#pragma once

#include <array>
#include <string>

/// What a process needs of MPI itself, outside of any group; programs call run_mpi_rank (process_ranks.h) instead.
namespace periplus::comm {

/// Who starts processes of MPI, and the variables that tell them their rank and world size before MPI does. srun tells the size of a PMIx
/// job only in its own variable.
struct ProcessManager {
  const char *name, *rank, *size;
};
inline constexpr std::array kProcessManagers = {ProcessManager{"mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"},
                                                ProcessManager{"the process manager", "PMI_RANK", "PMI_SIZE"},
                                                ProcessManager{"srun", "PMIX_RANK", "SLURM_STEP_NUM_TASKS"}};

struct MpiWorld {
  int rank = 0;
  int size = 1;
  bool started_here = false;  ///< And to be finished here.
};

/// As a process manager tells it; -1: none does.
int announced_mpi_rank();
/// MPI_Init_thread with MPI_THREAD_FUNNELED, unless the program has called it: the calling thread is the one that may communicate.
/// Errors: BackendUnavailable without MPI in the build, if MPI offers less, or after MPI_Finalize.
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

}  // namespace periplus::comm
