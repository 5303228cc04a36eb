#include "kernels/no_cuda/attention.h"

#include <fmt/format.h>

#include "runtime/error.h"

namespace periplus::kernels::no_cuda {

void refuse(std::string_view operation) {
  throw BackendUnavailable(
      fmt::format("{}: the stream is on a cuda device, but this build has no CUDA kernels; configure with -DPERIPLUS_WITH_CUDA=ON "
                  "or use a cpu stream",
                  operation));
}

}  // namespace periplus::kernels::no_cuda
