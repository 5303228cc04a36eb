// What kernels/cuda/linear_attention.h declares, in a build without CUDA.
#include "kernels/cuda/linear_attention.h"

#include "kernels/no_cuda/refuse.h"

namespace periplus::kernels::cuda {

void unit_states(const LinearShape&, const LinearBlock&, TensorView, StreamView) { refuse_cuda("unit_states"); }
void unit_states_backward(const LinearShape&, const LinearBlock&, ConstTensorView, TensorView, StreamView) {
  refuse_cuda("unit_states_backward");
}
void unit_scan(const ScanShape&, ConstTensorView, std::span<const UnitFold>, bool, TensorView, Update, StreamView) {
  refuse_cuda("unit_scan");
}
void unit_apply(const LinearShape&, const LinearBlock&, ConstTensorView, TensorView, StreamView) { refuse_cuda("unit_apply"); }
void unit_apply_backward(const LinearShape&, const LinearBlock&, ConstTensorView, ConstTensorView, ConstTensorView, const LinearGradients&,
                         StreamView) {
  refuse_cuda("unit_apply_backward");
}

}  // namespace periplus::kernels::cuda
