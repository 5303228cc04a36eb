#include "launch/cores.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include <omp.h>
#include <sched.h>

#include "runtime/host.h"

namespace periplus::launch {

int share_of_cores(int own, int together, int sum) { return std::max(1, own * together / std::max(1, sum)); }

void share_cores(const comm::Communicator& ranks) {
  cpu_set_t own;
  CPU_ZERO(&own);
  const bool known = std::getenv("OMP_NUM_THREADS") == nullptr && sched_getaffinity(0, sizeof(own), &own) == 0;
  const std::string host = host_id();
  cpu_set_t together;
  CPU_ZERO(&together);
  int sum = 0;
  for (const std::string& bytes : ranks.all_gather_bytes(std::string(reinterpret_cast<const char*>(&own), sizeof(own)) + host, Stream())) {
    if (bytes.compare(sizeof(own), std::string::npos, host) != 0) continue;
    cpu_set_t other;
    std::memcpy(&other, bytes.data(), sizeof(other));
    CPU_OR(&together, &together, &other);
    sum += CPU_COUNT(&other);
  }
  if (known) omp_set_num_threads(share_of_cores(CPU_COUNT(&own), CPU_COUNT(&together), sum));
}

}  // namespace periplus::launch
