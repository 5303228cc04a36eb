// Root mean square normalisation (algorithms.md 10.1).
#include <cmath>
#include <vector>

#include "kernels/cuda/transformer.h"
#include "kernels/operands.h"
#include "kernels/rows.h"
#include "kernels/transformer.h"
#include "kernels/transformer/vector_math.h"

namespace periplus::kernels {
namespace {

constexpr std::int64_t kChunkRows = 64;

template <class T, class A>
[[gnu::always_inline]] inline A forward_row(const T* x, const T* gamma, A eps, std::int64_t channels, T* y) {
  const A squares = lane_sum<A>(
      channels, [&](std::int64_t c) __attribute__((always_inline)) { return widen(x[c]) * widen(x[c]); });
  const A rstd = A(1) / std::sqrt(squares / static_cast<A>(channels) + eps);
  for (std::int64_t c = 0; c < channels; ++c) store(y[c], widen(x[c]) * rstd * widen(gamma[c]));
  return rstd;
}

/// dx = rstd t - rstd^3 x mean(t x) with t = dy gamma; dgamma += dy x rstd.
template <class T, class A>
[[gnu::always_inline]] inline void backward_row(const T* dy, const T* x, const T* gamma, A rstd, std::int64_t channels, bool accumulate,
                                                T* dx, A* __restrict dgamma) {
  const A dot = lane_sum<A>(
      channels, [&](std::int64_t c) __attribute__((always_inline)) { return widen(dy[c]) * widen(gamma[c]) * widen(x[c]); });
  const A pull = rstd * rstd * rstd * dot / static_cast<A>(channels);
  for (std::int64_t c = 0; c < channels; ++c) dgamma[c] += widen(dy[c]) * widen(x[c]) * rstd;
  if (accumulate) {
    for (std::int64_t c = 0; c < channels; ++c) {
      store(dx[c], widen(dx[c]) + (rstd * widen(dy[c]) * widen(gamma[c]) - pull * widen(x[c])));
    }
  } else {
    for (std::int64_t c = 0; c < channels; ++c) store(dx[c], rstd * widen(dy[c]) * widen(gamma[c]) - pull * widen(x[c]));
  }
}

}  // namespace

void rms_norm(ConstTensorView x, ConstTensorView gamma, double eps, TensorView y, TensorView rstd, StreamView stream) {
  check_dims("rms_norm", "x", x, 2);
  const std::int64_t rows = x.size(0), channels = x.size(1);
  check_dense("rms_norm", "x", x, {rows, channels}, x.dtype());
  check_dense("rms_norm", "gamma", gamma, {channels}, x.dtype());
  check_dense("rms_norm", "y", y, {rows, channels}, x.dtype());
  check_dense("rms_norm", "rstd", rstd, {rows}, accumulator_of(x.dtype()));
  if (on_cuda(stream)) return cuda::rms_norm(x, gamma, eps, y, rstd, stream);
  visit_dtype<bfloat16, float, double>(x.dtype(), "rms_norm", [&]<class T>() {
    using A = Accumulator<T>;
    const T *in = x.data<T>(), *weight = gamma.data<T>();
    T* out = y.data<T>();
    A* scale = rstd.data<A>();
    for_row_chunks(rows, kChunkRows, channels, stream, [=](std::int64_t begin, std::int64_t end, std::int64_t) {
      with_best_instructions([=]() __attribute__((always_inline)) {
        for (std::int64_t n = begin; n < end; ++n) {
          scale[n] = forward_row<T, A>(in + n * channels, weight, static_cast<A>(eps), channels, out + n * channels);
        }
      });
    });
  });
}

void rms_norm_backward(ConstTensorView dy, ConstTensorView x, ConstTensorView gamma, ConstTensorView rstd, TensorView dx, Update update_dx,
                       TensorView dgamma, StreamView stream) {
  constexpr std::string_view op = "rms_norm_backward";
  check_dims(op, "x", x, 2);
  const std::int64_t rows = x.size(0), channels = x.size(1);
  const DType dtype = x.dtype(), accumulator = accumulator_of(dtype);
  check_dense(op, "x", x, {rows, channels}, dtype);
  check_dense(op, "dy", dy, {rows, channels}, dtype);
  check_dense(op, "gamma", gamma, {channels}, dtype);
  check_dense(op, "rstd", rstd, {rows}, accumulator);
  check_dense(op, "dx", dx, {rows, channels}, dtype);
  check_dense(op, "dgamma", dgamma, {channels}, accumulator);
  if (on_cuda(stream)) return cuda::rms_norm_backward(dy, x, gamma, rstd, dx, update_dx, dgamma, stream);
  visit_dtype<bfloat16, float, double>(dtype, op, [&]<class T>() {
    using A = Accumulator<T>;
    const T *gradient = dy.data<T>(), *in = x.data<T>(), *weight = gamma.data<T>();
    const A* scale = rstd.data<A>();
    T* out = dx.data<T>();
    const bool accumulate = update_dx == Update::accumulate;
    const std::int64_t chunks = (rows + kChunkRows - 1) / kChunkRows;
    std::vector<A> partial_sums(static_cast<std::size_t>(chunks * channels));
    A* partial = partial_sums.data();
    for_row_chunks(rows, kChunkRows, channels, stream, [=](std::int64_t begin, std::int64_t end, std::int64_t chunk) {
      with_best_instructions([=]() __attribute__((always_inline)) {
        for (std::int64_t n = begin; n < end; ++n) {
          const std::int64_t at = n * channels;
          backward_row<T, A>(gradient + at, in + at, weight, scale[n], channels, accumulate, out + at, partial + chunk * channels);
        }
      });
    });
    A* sum = dgamma.data<A>();
    for_row_chunks(channels, 256, chunks, stream, [=](std::int64_t begin, std::int64_t end, std::int64_t) {
      for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
        for (std::int64_t c = begin; c < end; ++c) sum[c] += partial[chunk * channels + c];
      }
    });
  });
}

}  // namespace periplus::kernels
