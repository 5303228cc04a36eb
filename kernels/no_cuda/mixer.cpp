// What kernels/cuda/mixer.h declares, in a build without CUDA.
#include "kernels/cuda/mixer.h"

#include "kernels/no_cuda/refuse.h"

namespace periplus::kernels::cuda {

void logsigmoid_decay(ConstTensorView, double, TensorView, StreamView) { refuse_cuda("logsigmoid_decay"); }
void logsigmoid_decay_backward(ConstTensorView, ConstTensorView, double, TensorView, StreamView) {
  refuse_cuda("logsigmoid_decay_backward");
}
void softplus_decay(const SoftplusDecay&, TensorView, TensorView, StreamView) { refuse_cuda("softplus_decay"); }
void softplus_decay_backward(const SoftplusDecay&, ConstTensorView, ConstTensorView, TensorView, TensorView, TensorView, StreamView) {
  refuse_cuda("softplus_decay_backward");
}
void sigmoid_beta(ConstTensorView, double, TensorView, StreamView) { refuse_cuda("sigmoid_beta"); }
void sigmoid_beta_backward(ConstTensorView, ConstTensorView, double, TensorView, StreamView) { refuse_cuda("sigmoid_beta_backward"); }

void l2_norm(ConstTensorView, double, TensorView, StreamView) { refuse_cuda("l2_norm"); }
void l2_norm_backward(ConstTensorView, ConstTensorView, double, TensorView, StreamView) { refuse_cuda("l2_norm_backward"); }
void scale_heads(ConstTensorView, ConstTensorView, TensorView, StreamView) { refuse_cuda("scale_heads"); }
void scale_heads_backward(ConstTensorView, ConstTensorView, ConstTensorView, TensorView, TensorView, StreamView) {
  refuse_cuda("scale_heads_backward");
}
void add_skip(ConstTensorView, ConstTensorView, TensorView, StreamView) { refuse_cuda("add_skip"); }
void add_skip_backward(ConstTensorView, ConstTensorView, ConstTensorView, TensorView, TensorView, StreamView) {
  refuse_cuda("add_skip_backward");
}
void sum_heads(ConstTensorView, TensorView, StreamView) { refuse_cuda("sum_heads"); }

void short_convolution(const ShortConvolution&, TensorView, StreamView) { refuse_cuda("short_convolution"); }
void short_convolution_backward(const ShortConvolution&, ConstTensorView, TensorView, TensorView, TensorView, StreamView) {
  refuse_cuda("short_convolution_backward");
}

}  // namespace periplus::kernels::cuda
