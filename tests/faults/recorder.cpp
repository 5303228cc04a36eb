// Preloaded into MPI programs: writes down what a process asks of MPI, one line a call, into the file
// $PERIPLUS_MPI_LOG.<process id>:
//   send PEER TAG BYTES      MPI_Isend
//   receive PEER TAG BYTES   MPI_Irecv; PEER or TAG is negative for a wildcard
//   other NAME               any other call that moves data, or asks which message comes next
#include <cstdio>
#include <cstdlib>

#include <mpi.h>
#include <unistd.h>

namespace {

std::FILE* log_file() {
  static std::FILE* const file = [] {
    const char* prefix = std::getenv("PERIPLUS_MPI_LOG");
    if (prefix == nullptr) return static_cast<std::FILE*>(nullptr);
    char path[4096];
    std::snprintf(path, sizeof(path), "%s.%d", prefix, static_cast<int>(getpid()));
    std::FILE* opened = std::fopen(path, "w");
    if (opened != nullptr) std::setvbuf(opened, nullptr, _IOLBF, 1 << 16);
    return opened;
  }();
  return file;
}

void record_message(const char* verb, int count, MPI_Datatype type, int peer, int tag) {
  int bytes = 0;
  PMPI_Type_size(type, &bytes);
  if (log_file() != nullptr) std::fprintf(log_file(), "%s %d %d %lld\n", verb, peer, tag, static_cast<long long>(count) * bytes);
}

void record_other(const char* name) {
  if (log_file() != nullptr) std::fprintf(log_file(), "other %s\n", name);
}

}  // namespace

extern "C" {

int MPI_Isend(const void* data, int count, MPI_Datatype type, int peer, int tag, MPI_Comm comm, MPI_Request* request) {
  record_message("send", count, type, peer, tag);
  return PMPI_Isend(data, count, type, peer, tag, comm, request);
}

int MPI_Irecv(void* data, int count, MPI_Datatype type, int peer, int tag, MPI_Comm comm, MPI_Request* request) {
  record_message("receive", count, type, peer, tag);
  return PMPI_Irecv(data, count, type, peer, tag, comm, request);
}

#define OTHER(name, parameters, arguments) \
  int MPI_##name parameters {              \
    record_other("MPI_" #name);            \
    return PMPI_##name arguments;          \
  }
OTHER(Send, (const void* d, int n, MPI_Datatype t, int p, int g, MPI_Comm c), (d, n, t, p, g, c))
OTHER(Recv, (void* d, int n, MPI_Datatype t, int p, int g, MPI_Comm c, MPI_Status* s), (d, n, t, p, g, c, s))
OTHER(Waitany, (int n, MPI_Request* r, int* i, MPI_Status* s), (n, r, i, s))
OTHER(Waitsome, (int n, MPI_Request* r, int* k, int* i, MPI_Status* s), (n, r, k, i, s))
OTHER(Testany, (int n, MPI_Request* r, int* i, int* f, MPI_Status* s), (n, r, i, f, s))
OTHER(Probe, (int p, int g, MPI_Comm c, MPI_Status* s), (p, g, c, s))
OTHER(Iprobe, (int p, int g, MPI_Comm c, int* f, MPI_Status* s), (p, g, c, f, s))
OTHER(Mprobe, (int p, int g, MPI_Comm c, MPI_Message* m, MPI_Status* s), (p, g, c, m, s))
OTHER(Improbe, (int p, int g, MPI_Comm c, int* f, MPI_Message* m, MPI_Status* s), (p, g, c, f, m, s))
OTHER(Bcast, (void* d, int n, MPI_Datatype t, int root, MPI_Comm c), (d, n, t, root, c))
OTHER(Allreduce, (const void* a, void* b, int n, MPI_Datatype t, MPI_Op o, MPI_Comm c), (a, b, n, t, o, c))
OTHER(Allgather, (const void* a, int n, MPI_Datatype t, void* b, int m, MPI_Datatype u, MPI_Comm c), (a, n, t, b, m, u, c))
OTHER(Alltoall, (const void* a, int n, MPI_Datatype t, void* b, int m, MPI_Datatype u, MPI_Comm c), (a, n, t, b, m, u, c))
OTHER(Alltoallv,
      (const void* a, const int* n, const int* x, MPI_Datatype t, void* b, const int* m, const int* y, MPI_Datatype u, MPI_Comm c),
      (a, n, x, t, b, m, y, u, c))

}  // extern "C"
