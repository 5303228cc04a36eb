// What kernels/cuda/attention.h declares, in a build without CUDA.
#include "kernels/cuda/attention.h"

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

std::string_view to_string(Rung) noexcept { return "none"; }
Rung highest_rung() noexcept { return Rung::plain; }
void set_highest_rung(Rung) noexcept {}
void set_reserved_multiprocessors(int) noexcept {}
int reserved_multiprocessors() noexcept { return 0; }

void attend(const AttentionShape&, const AttentionBlock&, const AttentionState&, Update, StreamView) { refuse("attend"); }
void attend_backward(const AttentionShape&, const AttentionBlock&, ConstTensorView, ConstTensorView, ConstTensorView,
                     const AttentionGradients&, StreamView) {
  refuse("attend_backward");
}
void merge(ConstTensorView, ConstTensorView, const AttentionState&, StreamView) { refuse("merge"); }
void finish(ConstTensorView, ConstTensorView, ConstTensorView, TensorView, TensorView, StreamView) { refuse("finish"); }
void delta(ConstTensorView, ConstTensorView, ConstTensorView, ConstTensorView, ConstTensorView, TensorView, TensorView, StreamView) {
  refuse("delta");
}

}  // namespace periplus::kernels::cuda
