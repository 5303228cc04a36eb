// What stands around linear attention on the device of fake_device.cpp: what kernels/cuda/linear_tokens.h declares.
#include "kernels/cuda/linear_tokens.h"
#include "tests/parallel/execute/fake_device.h"

namespace periplus::kernels::cuda {
namespace {

using test::enqueue_on_fake;
using test::enqueue_with_runs;
using Runs = std::vector<UnitRun>;

}  // namespace

void mirror_decay(ConstTensorView log_decay, std::span<const UnitRun> runs, TensorView mirrored, StreamView stream) {
  enqueue_on_fake(stream, [=, own = Runs(runs.begin(), runs.end())] { kernels::mirror_decay(log_decay, own, mirrored, Stream()); });
}
void decay_states(ConstTensorView log_decay, std::span<const UnitRun> runs, TensorView states, StreamView stream) {
  enqueue_on_fake(stream, [=, own = Runs(runs.begin(), runs.end())] { kernels::decay_states(log_decay, own, states, Stream()); });
}
void add_mirrored(const LinearBlock& block, ConstTensorView mirrored, TensorView out, StreamView stream) {
  enqueue_with_runs(stream, block, [=](const LinearBlock& now) { kernels::add_mirrored(now, mirrored, out, Stream()); });
}
void add_mirrored_backward(const LinearBlock& block, ConstTensorView dout, const LinearGradients& mirrored,
                           const LinearGradients& gradients, StreamView stream) {
  enqueue_with_runs(stream, block,
                    [=](const LinearBlock& now) { kernels::add_mirrored_backward(now, dout, mirrored, gradients, Stream()); });
}
void extend_values(ConstTensorView values, TensorView extended, StreamView stream) {
  enqueue_on_fake(stream, [=] { kernels::extend_values(values, extended, Stream()); });
}
void normalise(ConstTensorView extended, double epsilon, TensorView out, TensorView normaliser, StreamView stream) {
  enqueue_on_fake(stream, [=] { kernels::normalise(extended, epsilon, out, normaliser, Stream()); });
}
void normalise_backward(ConstTensorView dout, ConstTensorView out, ConstTensorView normaliser, TensorView dextended, StreamView stream) {
  enqueue_on_fake(stream, [=] { kernels::normalise_backward(dout, out, normaliser, dextended, Stream()); });
}

}  // namespace periplus::kernels::cuda
