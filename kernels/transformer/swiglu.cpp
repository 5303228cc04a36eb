// Gated feed-forward activation (algorithms.md 10.3).
#include "kernels/cuda/transformer.h"
#include "kernels/operands.h"
#include "kernels/rows.h"
#include "kernels/transformer.h"
#include "kernels/transformer/vector_math.h"

namespace periplus::kernels {
namespace {

constexpr std::int64_t kChunkElements = 16384;

}  // namespace

void swiglu(ConstTensorView gate, ConstTensorView up, TensorView h, StreamView stream) {
  check_dense("swiglu", "gate", gate, gate.shape(), gate.dtype());
  check_dense("swiglu", "up", up, gate.shape(), gate.dtype());
  check_dense("swiglu", "h", h, gate.shape(), gate.dtype());
  if (on_cuda(stream)) return cuda::swiglu(gate, up, h, stream);
  visit_dtype<bfloat16, float, double>(gate.dtype(), "swiglu", [&]<class T>() {
    const T *a = gate.data<T>(), *u = up.data<T>();
    T* out = h.data<T>();
    for_row_chunks(gate.elements(), kChunkElements, 1, stream, [=](std::int64_t begin, std::int64_t end, std::int64_t) {
      with_best_instructions([=]() __attribute__((always_inline)) {
        for (std::int64_t i = begin; i < end; ++i) store(out[i], widen(a[i]) * sigmoid(widen(a[i])) * widen(u[i]));
      });
    });
  });
}

void swiglu_backward(ConstTensorView dh, ConstTensorView gate, ConstTensorView up, TensorView dgate, TensorView dup, StreamView stream) {
  constexpr std::string_view op = "swiglu_backward";
  check_dense(op, "gate", gate, gate.shape(), gate.dtype());
  check_dense(op, "up", up, gate.shape(), gate.dtype());
  check_dense(op, "dh", dh, gate.shape(), gate.dtype());
  check_dense(op, "dgate", dgate, gate.shape(), gate.dtype());
  check_dense(op, "dup", dup, gate.shape(), gate.dtype());
  if (on_cuda(stream)) return cuda::swiglu_backward(dh, gate, up, dgate, dup, stream);
  visit_dtype<bfloat16, float, double>(gate.dtype(), op, [&]<class T>() {
    using A = Accumulator<T>;
    const T *dy = dh.data<T>(), *a = gate.data<T>(), *u = up.data<T>();
    T *da = dgate.data<T>(), *du = dup.data<T>();
    for_row_chunks(gate.elements(), kChunkElements, 1, stream, [=](std::int64_t begin, std::int64_t end, std::int64_t) {
      with_best_instructions([=]() __attribute__((always_inline)) {
      // Each element is read before it is written, and the outputs alias the inputs exactly or not at all.
#pragma GCC ivdep
        for (std::int64_t i = begin; i < end; ++i) {
          const A g = widen(a[i]), d = widen(dy[i]), value = widen(u[i]);
          const A s = sigmoid(g);
          store(du[i], d * g * s);
          store(da[i], d * value * s * (A(1) + g * (A(1) - s)));
        }
      });
    });
  });
}

}  // namespace periplus::kernels
