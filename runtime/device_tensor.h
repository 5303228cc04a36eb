#pragma once

#include "runtime/tensor.h"

/// What code that runs on the CPU and on devices does with tensors beside computing: a CPU stream's tensors are in host memory.
namespace periplus {

/// In the order of a stream. On a device the tensor must be contiguous, and the host goes on.
void fill_zero(TensorView tensor, StreamView stream);

/// destination, in memory of the stream's device, := source, with conversion as in copy(). The host waits until the stream has
/// passed. Errors: InvalidArgument unless shapes are equal and, on a device, the destination is contiguous.
void upload(ConstTensorView host, TensorView destination, StreamView stream);
/// A copy of a tensor in host memory, made on a stream of its own.
Tensor to_device(ConstTensorView host, const Memory& memory);

}  // namespace periplus
