// mpirun -n 2: whether a send can finish before its receive is posted. Alone it does (MPI buffers 8 bytes); with the shim
// preloaded it must not, and a suite that passes under a shim without effect would prove nothing.
//   synchronous_test buffered|synchronous
#include <chrono>
#include <cstdio>
#include <cstring>

#include <mpi.h>

namespace {

constexpr int kEarly = 1, kGo = 2;

bool finishes_early(MPI_Request& request) {
  const auto limit = std::chrono::steady_clock::now() + std::chrono::milliseconds(100);
  int done = 0;
  while (!done && std::chrono::steady_clock::now() < limit) MPI_Test(&request, &done, MPI_STATUS_IGNORE);
  return done != 0;
}

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  const bool buffered = argc > 1 && std::strcmp(argv[1], "buffered") == 0;
  int rank = 0, wrong = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  double value = 0;
  if (rank == 0) {
    MPI_Request early, go;
    MPI_Isend(&value, 1, MPI_DOUBLE, 1, kEarly, MPI_COMM_WORLD, &early);
    if (finishes_early(early) != buffered) wrong = 1;
    MPI_Isend(nullptr, 0, MPI_DOUBLE, 1, kGo, MPI_COMM_WORLD, &go);
    MPI_Wait(&go, MPI_STATUS_IGNORE);
    MPI_Wait(&early, MPI_STATUS_IGNORE);
    if (wrong) std::fprintf(stderr, "a send %s before its receive was posted\n", buffered ? "did not finish" : "finished");
  } else if (rank == 1) {
    MPI_Recv(nullptr, 0, MPI_DOUBLE, 0, kGo, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    MPI_Recv(&value, 1, MPI_DOUBLE, 0, kEarly, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
  }
  MPI_Finalize();
  return wrong;
}
