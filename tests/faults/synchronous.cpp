// Preloaded into MPI programs: every send finishes only when its receive has started, as on a network without buffers.
// A program that passes alone and hangs here counted on MPI to buffer a message, which MPI never promises.
#include <cstdio>
#include <cstdlib>

#include <mpi.h>

extern "C" {

int MPI_Send(const void* data, int count, MPI_Datatype type, int peer, int tag, MPI_Comm comm) {
  return PMPI_Ssend(data, count, type, peer, tag, comm);
}

int MPI_Isend(const void* data, int count, MPI_Datatype type, int peer, int tag, MPI_Comm comm, MPI_Request* request) {
  return PMPI_Issend(data, count, type, peer, tag, comm, request);
}

// Sends without a synchronous twin here would make the suite prove less than it says. MPI_COMM_WORLD is a symbol that
// shells do not have, so no MPI_Abort.
#define REFUSE(name, parameters)                                                                     \
  int name parameters {                                                                              \
    std::fprintf(stderr, "synchronous sends: " #name " is used; give it a synchronous twin here\n"); \
    std::abort();                                                                                    \
  }
REFUSE(MPI_Bsend, (const void*, int, MPI_Datatype, int, int, MPI_Comm))
REFUSE(MPI_Rsend, (const void*, int, MPI_Datatype, int, int, MPI_Comm))
REFUSE(MPI_Ibsend, (const void*, int, MPI_Datatype, int, int, MPI_Comm, MPI_Request*))
REFUSE(MPI_Irsend, (const void*, int, MPI_Datatype, int, int, MPI_Comm, MPI_Request*))
REFUSE(MPI_Send_init, (const void*, int, MPI_Datatype, int, int, MPI_Comm, MPI_Request*))
REFUSE(MPI_Sendrecv, (const void*, int, MPI_Datatype, int, int, void*, int, MPI_Datatype, int, int, MPI_Comm, MPI_Status*))
REFUSE(MPI_Sendrecv_replace, (void*, int, MPI_Datatype, int, int, int, int, MPI_Comm, MPI_Status*))

}  // extern "C"
