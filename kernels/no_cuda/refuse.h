#pragma once

#include <string_view>

#include <fmt/format.h>

#include "runtime/error.h"

namespace periplus::kernels {

/// What every CUDA kernel does in a build that has none.
[[noreturn]] inline void refuse_cuda(std::string_view operation) {
  throw BackendUnavailable(
      fmt::format("{}: the stream is on a cuda device, but this build has no CUDA kernels; configure with -DPERIPLUS_WITH_CUDA=ON "
                  "or use a cpu stream",
                  operation));
}

}  // namespace periplus::kernels
