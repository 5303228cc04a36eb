// What kernels/cuda/transformer.h declares, in a build without CUDA.
#include "kernels/cuda/transformer.h"

#include "kernels/no_cuda/refuse.h"

namespace periplus::kernels::cuda {

void rms_norm(ConstTensorView, ConstTensorView, double, TensorView, TensorView, StreamView) { refuse_cuda("rms_norm"); }
void rms_norm_backward(ConstTensorView, ConstTensorView, ConstTensorView, ConstTensorView, TensorView, Update, TensorView, StreamView) {
  refuse_cuda("rms_norm_backward");
}
void rope(TensorView, std::span<const std::int64_t>, std::span<const double>, RopeStyle, RopeDirection, StreamView) { refuse_cuda("rope"); }
void swiglu(ConstTensorView, ConstTensorView, TensorView, StreamView) { refuse_cuda("swiglu"); }
void swiglu_backward(ConstTensorView, ConstTensorView, ConstTensorView, TensorView, TensorView, StreamView) {
  refuse_cuda("swiglu_backward");
}
void embedding(std::span<const std::int32_t>, ConstTensorView, TensorView, StreamView) { refuse_cuda("embedding"); }
void embedding_backward(std::span<const std::int32_t>, ConstTensorView, TensorView, StreamView) { refuse_cuda("embedding_backward"); }
CrossEntropyResult cross_entropy(ConstTensorView, ConstTensorView, std::span<const std::int32_t>, const CrossEntropyOptions&, TensorView,
                                 TensorView, const Memory&, StreamView) {
  refuse_cuda("cross_entropy");
}
void adamw(TensorView, TensorView, TensorView, ConstTensorView, TensorView, const AdamwOptions&, StreamView) { refuse_cuda("adamw"); }
double sum_of_squares(ConstTensorView, StreamView) { refuse_cuda("sum_of_squares"); }

}  // namespace periplus::kernels::cuda
