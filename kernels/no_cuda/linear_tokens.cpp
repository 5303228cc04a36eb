// What kernels/cuda/linear_tokens.h declares, in a build without CUDA.
#include "kernels/cuda/linear_tokens.h"

#include "kernels/no_cuda/refuse.h"

namespace periplus::kernels::cuda {

void mirror_decay(ConstTensorView, std::span<const UnitRun>, TensorView, StreamView) { refuse_cuda("mirror_decay"); }
void decay_states(ConstTensorView, std::span<const UnitRun>, TensorView, StreamView) { refuse_cuda("decay_states"); }
void add_mirrored(const LinearBlock&, ConstTensorView, TensorView, StreamView) { refuse_cuda("add_mirrored"); }
void add_mirrored_backward(const LinearBlock&, ConstTensorView, const LinearGradients&, const LinearGradients&, StreamView) {
  refuse_cuda("add_mirrored_backward");
}
void extend_values(ConstTensorView, TensorView, StreamView) { refuse_cuda("extend_values"); }
void normalise(ConstTensorView, double, TensorView, TensorView, StreamView) { refuse_cuda("normalise"); }
void normalise_backward(ConstTensorView, ConstTensorView, ConstTensorView, TensorView, StreamView) { refuse_cuda("normalise_backward"); }

}  // namespace periplus::kernels::cuda
