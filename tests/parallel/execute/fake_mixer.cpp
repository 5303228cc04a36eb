// Linear mixers on the device of fake_device.cpp: what kernels/cuda/mixer.h declares.
#include "kernels/cuda/mixer.h"
#include "kernels/mixer.h"
#include "tests/parallel/execute/fake_device.h"

namespace periplus::kernels::cuda {
namespace {

using test::enqueue_on_fake;
using test::enqueue_with_runs;

}  // namespace

void logsigmoid_decay(ConstTensorView x, double divisor, TensorView log_decay, StreamView stream) {
  enqueue_on_fake(stream, [=] { kernels::logsigmoid_decay(x, divisor, log_decay, Stream()); });
}
void logsigmoid_decay_backward(ConstTensorView dlog_decay, ConstTensorView x, double divisor, TensorView dx, StreamView stream) {
  enqueue_on_fake(stream, [=] { kernels::logsigmoid_decay_backward(dlog_decay, x, divisor, dx, Stream()); });
}
void softplus_decay(const SoftplusDecay& inputs, TensorView log_decay, TensorView step, StreamView stream) {
  enqueue_on_fake(stream, [=] { kernels::softplus_decay(inputs, log_decay, step, Stream()); });
}
void softplus_decay_backward(const SoftplusDecay& inputs, ConstTensorView dlog_decay, ConstTensorView dstep, TensorView da,
                             TensorView da_log, TensorView ddt_bias, StreamView stream) {
  enqueue_on_fake(stream, [=] { kernels::softplus_decay_backward(inputs, dlog_decay, dstep, da, da_log, ddt_bias, Stream()); });
}
void sigmoid_beta(ConstTensorView b, double ceiling, TensorView beta, StreamView stream) {
  enqueue_on_fake(stream, [=] { kernels::sigmoid_beta(b, ceiling, beta, Stream()); });
}
void sigmoid_beta_backward(ConstTensorView dbeta, ConstTensorView b, double ceiling, TensorView db, StreamView stream) {
  enqueue_on_fake(stream, [=] { kernels::sigmoid_beta_backward(dbeta, b, ceiling, db, Stream()); });
}

void l2_norm(ConstTensorView x, double eps, TensorView y, StreamView stream) {
  enqueue_on_fake(stream, [=] { kernels::l2_norm(x, eps, y, Stream()); });
}
void l2_norm_backward(ConstTensorView dy, ConstTensorView x, double eps, TensorView dx, StreamView stream) {
  enqueue_on_fake(stream, [=] { kernels::l2_norm_backward(dy, x, eps, dx, Stream()); });
}
void scale_heads(ConstTensorView x, ConstTensorView factor, TensorView y, StreamView stream) {
  enqueue_on_fake(stream, [=] { kernels::scale_heads(x, factor, y, Stream()); });
}
void scale_heads_backward(ConstTensorView dy, ConstTensorView x, ConstTensorView factor, TensorView dx, TensorView dfactor,
                          StreamView stream) {
  enqueue_on_fake(stream, [=] { kernels::scale_heads_backward(dy, x, factor, dx, dfactor, Stream()); });
}
void add_skip(ConstTensorView x, ConstTensorView skip, TensorView y, StreamView stream) {
  enqueue_on_fake(stream, [=] { kernels::add_skip(x, skip, y, Stream()); });
}
void add_skip_backward(ConstTensorView dy, ConstTensorView x, ConstTensorView skip, TensorView dx, TensorView dskip, StreamView stream) {
  enqueue_on_fake(stream, [=] { kernels::add_skip_backward(dy, x, skip, dx, dskip, Stream()); });
}
void sum_heads(ConstTensorView x, TensorView y, StreamView stream) {
  enqueue_on_fake(stream, [=] { kernels::sum_heads(x, y, Stream()); });
}
void short_convolution(const ShortConvolution& inputs, TensorView y, StreamView stream) {
  enqueue_with_runs(stream, inputs, [=](const ShortConvolution& now) { kernels::short_convolution(now, y, Stream()); });
}
void short_convolution_backward(const ShortConvolution& inputs, ConstTensorView dy, TensorView dx, TensorView dhalo, TensorView dweight,
                                StreamView stream) {
  enqueue_with_runs(stream, inputs,
                    [=](const ShortConvolution& now) { kernels::short_convolution_backward(now, dy, dx, dhalo, dweight, Stream()); });
}

}  // namespace periplus::kernels::cuda
