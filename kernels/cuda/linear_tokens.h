#pragma once

#include "kernels/linear_tokens.h"

/// kernels/linear_tokens.h on CUDA devices; arguments are already checked. Runs are read before a function returns, all else when the
/// stream gets there. The same bits in every run. A build without CUDA has the same functions in kernels/no_cuda; there they throw
/// BackendUnavailable.
namespace periplus::kernels::cuda {

void mirror_decay(ConstTensorView log_decay, std::span<const UnitRun> runs, TensorView mirrored, StreamView stream);
void decay_states(ConstTensorView log_decay, std::span<const UnitRun> runs, TensorView states, StreamView stream);
void add_mirrored(const LinearBlock& block, ConstTensorView mirrored, TensorView out, StreamView stream);
void add_mirrored_backward(const LinearBlock& block, ConstTensorView dout, const LinearGradients& mirrored,
                           const LinearGradients& gradients, StreamView stream);
void extend_values(ConstTensorView values, TensorView extended, StreamView stream);
void normalise(ConstTensorView extended, double epsilon, TensorView out, TensorView normaliser, StreamView stream);
void normalise_backward(ConstTensorView dout, ConstTensorView out, ConstTensorView normaliser, TensorView dextended, StreamView stream);

}  // namespace periplus::kernels::cuda
