// Stands in for nccl_library.cpp in builds without NCCL.
#include "runtime/comm/nccl_api.h"
#include "runtime/comm/nccl_transport.h"
#include "runtime/error.h"

namespace periplus::comm {

const nccl::Api& nccl::library() {
  throw BackendUnavailable(
      "nccl transport: this build has no NCCL; install NCCL's header nccl.h and the CUDA toolkit and configure with "
      "-DPERIPLUS_WITH_CUDA=ON -DPERIPLUS_WITH_NCCL=ON, or use the thread transport");
}

}  // namespace periplus::comm
