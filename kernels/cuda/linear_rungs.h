#pragma once

#include "kernels/cuda/linear_attention.h"

/// The implementations behind kernels/cuda/linear_attention.h, with the same arguments; all views are device memory.
namespace periplus::kernels::cuda {

/// Of heads, as far as CUDA kernels go.
inline constexpr int kMostWidth = 256;

namespace plain {
void unit_states(const LinearShape& shape, const LinearBlock& block, TensorView elements, StreamView stream);
void unit_states_backward(const LinearShape& shape, const LinearBlock& block, ConstTensorView dout, TensorView elements, StreamView stream);
void unit_scan(const ScanShape& shape, ConstTensorView elements, std::span<const UnitFold> folds, bool reverse, TensorView states,
               Update update, StreamView stream);
void unit_apply(const LinearShape& shape, const LinearBlock& block, ConstTensorView incoming, TensorView out, StreamView stream);
void unit_apply_backward(const LinearShape& shape, const LinearBlock& block, ConstTensorView incoming, ConstTensorView dout,
                         ConstTensorView doutgoing, const LinearGradients& gradients, StreamView stream);
}  // namespace plain

}  // namespace periplus::kernels::cuda
