#pragma once

#include "kernels/mixer.h"

/// kernels/mixer.h on CUDA devices; arguments are already checked. Spans of ordinary memory are read before a function returns, all
/// else when the stream gets there. The same bits in every run. A build without CUDA has the same functions in kernels/no_cuda; there
/// they throw BackendUnavailable.
namespace periplus::kernels::cuda {

void logsigmoid_decay(ConstTensorView x, double divisor, TensorView log_decay, StreamView stream);
void logsigmoid_decay_backward(ConstTensorView dlog_decay, ConstTensorView x, double divisor, TensorView dx, StreamView stream);
void softplus_decay(const SoftplusDecay& inputs, TensorView log_decay, TensorView step, StreamView stream);
void softplus_decay_backward(const SoftplusDecay& inputs, ConstTensorView dlog_decay, ConstTensorView dstep, TensorView da,
                             TensorView da_log, TensorView ddt_bias, StreamView stream);
void sigmoid_beta(ConstTensorView b, double ceiling, TensorView beta, StreamView stream);
void sigmoid_beta_backward(ConstTensorView dbeta, ConstTensorView b, double ceiling, TensorView db, StreamView stream);

void l2_norm(ConstTensorView x, double eps, TensorView y, StreamView stream);
void l2_norm_backward(ConstTensorView dy, ConstTensorView x, double eps, TensorView dx, StreamView stream);
void scale_heads(ConstTensorView x, ConstTensorView factor, TensorView y, StreamView stream);
void scale_heads_backward(ConstTensorView dy, ConstTensorView x, ConstTensorView factor, TensorView dx, TensorView dfactor,
                          StreamView stream);
void add_skip(ConstTensorView x, ConstTensorView skip, TensorView y, StreamView stream);
void add_skip_backward(ConstTensorView dy, ConstTensorView x, ConstTensorView skip, TensorView dx, TensorView dskip, StreamView stream);
void sum_heads(ConstTensorView x, TensorView y, StreamView stream);

/// Errors: InvalidArgument for more than 64 taps.
void short_convolution(const ShortConvolution& inputs, TensorView y, StreamView stream);
void short_convolution_backward(const ShortConvolution& inputs, ConstTensorView dy, TensorView dx, TensorView dhalo, TensorView dweight,
                                StreamView stream);

}  // namespace periplus::kernels::cuda
