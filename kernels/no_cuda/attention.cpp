// What kernels/cuda/attention.h declares, in a build without CUDA.
#include "kernels/cuda/attention.h"

#include "kernels/no_cuda/refuse.h"

namespace periplus::kernels::cuda {
void set_reserved_multiprocessors(int) noexcept {}
int reserved_multiprocessors() noexcept { return 0; }

void attend(const AttentionShape&, const AttentionBlock&, const AttentionState&, Update, StreamView) { refuse_cuda("attend"); }
void attend_backward(const AttentionShape&, const AttentionBlock&, ConstTensorView, ConstTensorView, ConstTensorView,
                     const AttentionGradients&, StreamView) {
  refuse_cuda("attend_backward");
}
void merge(ConstTensorView, ConstTensorView, const AttentionState&, StreamView) { refuse_cuda("merge"); }
void finish(ConstTensorView, ConstTensorView, ConstTensorView, TensorView, TensorView, StreamView) { refuse_cuda("finish"); }
void delta(ConstTensorView, ConstTensorView, ConstTensorView, ConstTensorView, ConstTensorView, TensorView, TensorView, StreamView) {
  refuse_cuda("delta");
}

}  // namespace periplus::kernels::cuda
