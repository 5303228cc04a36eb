#pragma once

#include "kernels/linear_attention_problem.h"
#include "kernels/scan_steps.h"

/// Linear attention and the delta rule on CUDA devices. Arguments are already checked by kernels/linear_attention.cpp, which see
/// for the contract. A build without CUDA has the same functions in kernels/no_cuda; there they throw BackendUnavailable.
///
/// Rungs    As attention's (kernels/cuda/attention.h), of which there are two here, picked by what the device, the types, the widths
///          and the strides allow.
///          plain: token by token, every type (f64 too) and rule.
///          portable: mma.sync in chunks of 64 tokens, capability 8.0 and up, bf16 and f16, every rule but the delta rule
///          with a decay per channel, widths that are multiples of 8 up to 128, rows aligned to 16 bytes. A log_decay below -88 counts as
///          that. The delta rule needs 144 KiB of shared memory a block, and in backward work areas of 8.5 times q (widths 128).
/// Errors   InvalidArgument for heads wider than 256.
/// Repeats  Bit for bit: nothing is added in an order that timing decides.
namespace periplus::kernels::cuda {

void unit_states(const LinearShape& shape, const LinearBlock& block, TensorView elements, StreamView stream);
void unit_states_backward(const LinearShape& shape, const LinearBlock& block, ConstTensorView dout, TensorView elements, StreamView stream);
void unit_scan(const ScanShape& shape, ConstTensorView elements, std::span<const UnitFold> folds, bool reverse, TensorView states,
               Update update, StreamView stream);
void unit_apply(const LinearShape& shape, const LinearBlock& block, ConstTensorView incoming, TensorView out, StreamView stream);
void unit_apply_backward(const LinearShape& shape, const LinearBlock& block, ConstTensorView incoming, ConstTensorView dout,
                         ConstTensorView doutgoing, const LinearGradients& gradients, StreamView stream);

}  // namespace periplus::kernels::cuda
