#pragma once

#include "kernels/cuda/linear_rungs.h"

/// The delta rule on matrix instructions, without decay or with one per head: what portable_linear.cpp calls for blocks with a beta.
namespace periplus::kernels::cuda::portable::delta {

/// Of a block of threads, at the widest.
inline constexpr int kSharedBytes = 144 << 10;

void unit_states(const LinearShape& shape, const LinearBlock& block, TensorView elements, StreamView stream);
void unit_states_backward(const LinearShape& shape, const LinearBlock& block, ConstTensorView dout, TensorView elements, StreamView stream);
void unit_apply(const LinearShape& shape, const LinearBlock& block, ConstTensorView incoming, TensorView out, StreamView stream);
void unit_apply_backward(const LinearShape& shape, const LinearBlock& block, ConstTensorView incoming, ConstTensorView dout,
                         ConstTensorView doutgoing, const LinearGradients& gradients, StreamView stream);

}  // namespace periplus::kernels::cuda::portable::delta
