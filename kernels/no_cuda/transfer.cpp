// What kernels/cuda/transfer.h declares, in a build without CUDA.
#include "kernels/cuda/transfer.h"

#include <fmt/format.h>

#include "runtime/error.h"

namespace periplus::kernels::cuda {
namespace {

[[noreturn]] void refuse(std::string_view operation) {
  throw BackendUnavailable(
      fmt::format("{}: the stream is on a cuda device, but this build has no CUDA kernels; configure with -DPERIPLUS_WITH_CUDA=ON "
                  "or use a cpu stream",
                  operation));
}

}  // namespace

void move_rows(ConstTensorView, TensorView, std::span<const RowMove>, StreamView) { refuse("copy"); }
void add(ConstTensorView, TensorView, StreamView) { refuse("add"); }

}  // namespace periplus::kernels::cuda
