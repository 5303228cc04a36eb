#pragma once

#include "kernels/attention.h"
#include "kernels/attention_problem.h"
#include "kernels/cuda/rung.h"

/// Attention on CUDA devices. Arguments are already checked by kernels/attention.cpp, which see for the contract.
/// A build without CUDA has the same functions in kernels/no_cuda; there they throw BackendUnavailable.
///
/// Rungs    plain: one thread a result element, every type (f64 too) and head size; for tests and for what the others lack.
///          portable: mma.sync and cp.async, capability 8.0 and up, bf16 and f16, heads up to 256.
///          hopper: wgmma and TMA, capability 9.0, bf16 and f16, heads up to 128.
///          A call runs on the best rung that device, type, head size, strides and softcap allow.
/// NaN      and infinity reach only the rows that meet them, but for the hopper rung: there a value (backward: a row of q, k or
///          dout) that is not finite also reaches rows that a band hides from it, in the tiles of 128 that the band cuts.
/// Repeats  Bit for bit: nothing is added in an order that timing decides.
namespace periplus::kernels::cuda {

/// Multiprocessors that attention leaves to others (exchanges by kernels, as NCCL's) while this is set; per thread.
void set_reserved_multiprocessors(int count) noexcept;
int reserved_multiprocessors() noexcept;

void attend(const AttentionShape& shape, const AttentionBlock& block, const AttentionState& state, Update update, StreamView stream);
void attend_backward(const AttentionShape& shape, const AttentionBlock& block, ConstTensorView dout, ConstTensorView lse,
                     ConstTensorView delta, const AttentionGradients& gradients, StreamView stream);
void merge(ConstTensorView part_out, ConstTensorView part_lse, const AttentionState& state, StreamView stream);
void finish(ConstTensorView state_out, ConstTensorView state_lse, ConstTensorView sink, TensorView out, TensorView lse, StreamView stream);
void delta(ConstTensorView dout, ConstTensorView out, ConstTensorView lse, ConstTensorView dlse, ConstTensorView sink, TensorView delta,
           TensorView dsink, StreamView stream);

}  // namespace periplus::kernels::cuda
