// Kernels of a model on the device of fake_device.cpp: what kernels/cuda/transformer.h and kernels/cuda/matmul.h declare.
#include <cmath>
#include <vector>

#include "kernels/cuda/matmul.h"
#include "kernels/cuda/transformer.h"
#include "kernels/matmul.h"
#include "kernels/transformer.h"
#include "runtime/cuda/device.h"
#include "tests/parallel/execute/fake_device.h"

namespace periplus::kernels::cuda {
namespace {

using test::enqueue_on_fake;

template <class T>
std::vector<T> copy_of(std::span<const T> values) {
  return {values.begin(), values.end()};
}

}  // namespace

void rms_norm(ConstTensorView x, ConstTensorView gamma, double eps, TensorView y, TensorView rstd, StreamView stream) {
  enqueue_on_fake(stream, [=] { kernels::rms_norm(x, gamma, eps, y, rstd, Stream()); });
}
void rms_norm_backward(ConstTensorView dy, ConstTensorView x, ConstTensorView gamma, ConstTensorView rstd, TensorView dx, Update update_dx,
                       TensorView dgamma, StreamView stream) {
  enqueue_on_fake(stream, [=] { kernels::rms_norm_backward(dy, x, gamma, rstd, dx, update_dx, dgamma, Stream()); });
}
void rope(TensorView x, std::span<const std::int64_t> positions, std::span<const double> frequencies, RopeStyle style,
          RopeDirection direction, StreamView stream) {
  enqueue_on_fake(stream, [=, positions = copy_of(positions), frequencies = copy_of(frequencies)] {
    kernels::rope(x, positions, frequencies, style, direction, Stream());
  });
}
void swiglu(ConstTensorView gate, ConstTensorView up, TensorView h, StreamView stream) {
  enqueue_on_fake(stream, [=] { kernels::swiglu(gate, up, h, Stream()); });
}
void swiglu_backward(ConstTensorView dh, ConstTensorView gate, ConstTensorView up, TensorView dgate, TensorView dup, StreamView stream) {
  enqueue_on_fake(stream, [=] { kernels::swiglu_backward(dh, gate, up, dgate, dup, Stream()); });
}
void embedding(std::span<const std::int32_t> tokens, ConstTensorView table, TensorView x, StreamView stream) {
  enqueue_on_fake(stream, [=, tokens = copy_of(tokens)] { kernels::embedding(tokens, table, x, Stream()); });
}
void embedding_backward(std::span<const std::int32_t> tokens, ConstTensorView dx, TensorView dtable, StreamView stream) {
  enqueue_on_fake(stream, [=, tokens = copy_of(tokens)] { kernels::embedding_backward(tokens, dx, dtable, Stream()); });
}
CrossEntropyResult cross_entropy(ConstTensorView x, ConstTensorView weight, std::span<const std::int32_t> labels,
                                 const CrossEntropyOptions& options, TensorView dx, TensorView dweight, const Memory&, StreamView stream) {
  CrossEntropyResult result;
  enqueue_on_fake(stream, [&] { result = kernels::cross_entropy(x, weight, labels, options, dx, dweight, Memory(), Stream()); });
  periplus::cuda::synchronize(stream);
  return result;
}
void adamw(TensorView master, TensorView m, TensorView v, ConstTensorView gradient, TensorView working, const AdamwOptions& options,
           StreamView stream) {
  enqueue_on_fake(stream, [=] { kernels::adamw(master, m, v, gradient, working, options, Stream()); });
}
double sum_of_squares(ConstTensorView x, StreamView stream) {
  double sum = 0;
  enqueue_on_fake(stream, [&] { sum = kernels::sum_of_squares(x, Stream()); });
  periplus::cuda::synchronize(stream);
  return sum;
}

bool matmul_available(std::string*) { return true; }
void matmul(const MatmulShape&, ConstTensorView a, ConstTensorView b, TensorView c, const MatmulOptions& options, StreamView stream) {
  enqueue_on_fake(stream, [=] { kernels::matmul(a, b, c, options, Stream()); });
}

}  // namespace periplus::kernels::cuda
