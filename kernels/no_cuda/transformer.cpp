// What kernels/cuda/transformer.h declares, in a build without CUDA.
#include "kernels/cuda/transformer.h"

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

void rms_norm(ConstTensorView, ConstTensorView, double, TensorView, TensorView, StreamView) { refuse("rms_norm"); }
void rms_norm_backward(ConstTensorView, ConstTensorView, ConstTensorView, ConstTensorView, TensorView, Update, TensorView, StreamView) {
  refuse("rms_norm_backward");
}
void rope(TensorView, std::span<const std::int64_t>, std::span<const double>, RopeStyle, RopeDirection, StreamView) { refuse("rope"); }
void swiglu(ConstTensorView, ConstTensorView, TensorView, StreamView) { refuse("swiglu"); }
void swiglu_backward(ConstTensorView, ConstTensorView, ConstTensorView, TensorView, TensorView, StreamView) { refuse("swiglu_backward"); }
void embedding(std::span<const std::int32_t>, ConstTensorView, TensorView, StreamView) { refuse("embedding"); }
void embedding_backward(std::span<const std::int32_t>, ConstTensorView, TensorView, StreamView) { refuse("embedding_backward"); }
CrossEntropyResult cross_entropy(ConstTensorView, ConstTensorView, std::span<const std::int32_t>, const CrossEntropyOptions&, TensorView,
                                 TensorView, const Memory&, StreamView) {
  refuse("cross_entropy");
}
void adamw(TensorView, TensorView, TensorView, ConstTensorView, TensorView, const AdamwOptions&, StreamView) { refuse("adamw"); }
double sum_of_squares(ConstTensorView, StreamView) { refuse("sum_of_squares"); }

}  // namespace periplus::kernels::cuda
