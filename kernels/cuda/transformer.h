#pragma once

#include <cstdint>
#include <span>

#include "kernels/transformer.h"

/// kernels/transformer.h on CUDA devices; arguments are already checked. N = 0 is allowed too. Spans of ordinary memory
/// are read before a function returns, all else when the stream gets there. The same bits in every run. A build without CUDA has
/// the same functions in kernels/no_cuda; there they throw BackendUnavailable.
namespace periplus::kernels::cuda {

void rms_norm(ConstTensorView x, ConstTensorView gamma, double eps, TensorView y, TensorView rstd, StreamView stream);
void rms_norm_backward(ConstTensorView dy, ConstTensorView x, ConstTensorView gamma, ConstTensorView rstd, TensorView dx, Update update_dx,
                       TensorView dgamma, StreamView stream);
/// `frequencies` [D/2]: the angle of pair m per position.
void rope(TensorView x, std::span<const std::int64_t> positions, std::span<const double> frequencies, RopeStyle style,
          RopeDirection direction, StreamView stream);
void swiglu(ConstTensorView gate, ConstTensorView up, TensorView h, StreamView stream);
void swiglu_backward(ConstTensorView dh, ConstTensorView gate, ConstTensorView up, TensorView dgate, TensorView dup, StreamView stream);
void embedding(std::span<const std::int32_t> tokens, ConstTensorView table, TensorView x, StreamView stream);
void embedding_backward(std::span<const std::int32_t> tokens, ConstTensorView dx, TensorView dtable, StreamView stream);
/// Waits for the stream, since the loss is on the host.
CrossEntropyResult cross_entropy(ConstTensorView x, ConstTensorView weight, std::span<const std::int32_t> labels,
                                 const CrossEntropyOptions& options, TensorView dx, TensorView dweight, const Memory& memory,
                                 StreamView stream);
void adamw(TensorView master, TensorView m, TensorView v, ConstTensorView gradient, TensorView working, const AdamwOptions& options,
           StreamView stream);
/// Waits for the stream.
double sum_of_squares(ConstTensorView x, StreamView stream);

}  // namespace periplus::kernels::cuda
