#pragma once

#include "runtime/comm/communicator.h"
#include "runtime/comm/transport.h"

namespace periplus::comm {

/// Communicator over a duplicate of MPI_COMM_WORLD, host memory only. The caller has initialised MPI with at least
/// MPI_THREAD_FUNNELED and uses the communicator from that thread; it must be destroyed before MPI_Finalize.
/// Messages travel as fragments of at most 1 MiB so that one progress call copies little.
/// abort() fails the operations of the own rank only: others learn of it at their deadlines, so a program whose rank fails should end
/// with MPI_Abort, as run_mpi_rank (process_ranks.h) does.
/// Errors: BackendUnavailable without MPI in the build; InvalidArgument if MPI is not initialised.
Communicator make_mpi_world(const TransportOptions& options = {});

/// Same, over a caller's MPI communicator given as its Fortran handle (MPI_Comm_c2f), so that no MPI type is needed here.
Communicator make_mpi_communicator(int fortran_handle, const TransportOptions& options = {});

}  // namespace periplus::comm
