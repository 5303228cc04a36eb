// Linear attention and the rest of linear mixers on the device of fake_device.cpp: what kernels/cuda/linear_attention.h and
// kernels/cuda/mixer.h declare.
#include <vector>

#include "kernels/cuda/linear_attention.h"
#include "kernels/cuda/mixer.h"
#include "kernels/linear_attention.h"
#include "kernels/mixer.h"
#include "tests/parallel/execute/fake_device.h"

namespace periplus::kernels::cuda {
namespace {

using test::enqueue_on_fake;

/// run(inputs) later, with runs of its own.
template <class Inputs, class Run>
void enqueue_with_runs(StreamView stream, const Inputs& inputs, const Run& run) {
  enqueue_on_fake(stream, [inputs, run, runs = std::vector<UnitRun>(inputs.runs.begin(), inputs.runs.end())] {
    Inputs now = inputs;
    now.runs = runs;
    run(now);
  });
}

}  // namespace

void unit_states(const LinearShape&, const LinearBlock& block, TensorView elements, StreamView stream) {
  enqueue_with_runs(stream, block, [=](const LinearBlock& now) { kernels::unit_states(now, elements, Stream()); });
}
void unit_states_backward(const LinearShape&, const LinearBlock& block, ConstTensorView dout, TensorView elements, StreamView stream) {
  enqueue_with_runs(stream, block, [=](const LinearBlock& now) { kernels::unit_states_backward(now, dout, elements, Stream()); });
}
void unit_scan(const ScanShape& shape, ConstTensorView elements, std::span<const UnitFold> folds, bool reverse, TensorView states,
               Update update, StreamView stream) {
  enqueue_on_fake(stream, [=, transition = shape.transition, folds = std::vector<UnitFold>(folds.begin(), folds.end())] {
    kernels::unit_scan(elements, folds, transition, reverse, states, update, Stream());
  });
}
void unit_apply(const LinearShape&, const LinearBlock& block, ConstTensorView incoming, TensorView out, StreamView stream) {
  enqueue_with_runs(stream, block, [=](const LinearBlock& now) { kernels::unit_apply(now, incoming, out, Stream()); });
}
void unit_apply_backward(const LinearShape&, const LinearBlock& block, ConstTensorView incoming, ConstTensorView dout,
                         ConstTensorView doutgoing, const LinearGradients& gradients, StreamView stream) {
  enqueue_with_runs(stream, block,
                    [=](const LinearBlock& now) { kernels::unit_apply_backward(now, incoming, dout, doutgoing, gradients, Stream()); });
}

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
