// Operations per token and head (algorithms.md 5.10).
#include <cmath>

#include "kernels/cuda/mixer.h"
#include "kernels/mixer.h"
#include "kernels/mixer/tokens.h"
#include "kernels/operands.h"

namespace periplus::kernels {
namespace {

Tokens check_x(std::string_view op, const ConstTensorView& x) {
  check_dims(op, "x", x);
  check_operand(op, "x", x, x.shape(), x.dtype());
  return {x.size(0), x.size(1), x.size(2)};
}

}  // namespace

void l2_norm(ConstTensorView x, double eps, TensorView y, StreamView stream) {
  const Tokens shape = check_x("l2_norm", x);
  check_operand("l2_norm", "y", y, x.shape(), x.dtype());
  if (on_cuda(stream)) return cuda::l2_norm(x, eps, y, stream);
  visit_dtype<bfloat16, float, double>(x.dtype(), "l2_norm", [&]<class T>() {
    using A = Accumulator<T>;
    const auto in = strided<T>(x);
    const auto out = strided<T>(y);
    for_each_token(
        shape, stream, [ =, least = static_cast<A>(eps) ](std::int64_t n, std::int64_t h) __attribute__((always_inline)) {
          const T* from = at(in, n, h);
          T* to = at(out, n, h);
          const A scale = A(1) / std::sqrt(product<A>(from, from, shape.width) + least);
          for (std::int64_t i = 0; i < shape.width; ++i) store(to[i], widen(from[i]) * scale);
        });
  });
}

void l2_norm_backward(ConstTensorView dy, ConstTensorView x, double eps, TensorView dx, StreamView stream) {
  constexpr std::string_view op = "l2_norm_backward";
  const Tokens shape = check_x(op, x);
  check_operand(op, "dy", dy, x.shape(), x.dtype());
  check_operand(op, "dx", dx, x.shape(), x.dtype());
  if (on_cuda(stream)) return cuda::l2_norm_backward(dy, x, eps, dx, stream);
  visit_dtype<bfloat16, float, double>(x.dtype(), op, [&]<class T>() {
    using A = Accumulator<T>;
    const auto in = strided<T>(x), gradient = strided<T>(dy);
    const auto out = strided<T>(dx);
    for_each_token(
        shape, stream, [ =, least = static_cast<A>(eps) ](std::int64_t n, std::int64_t h) __attribute__((always_inline)) {
          const T *from = at(in, n, h), *d = at(gradient, n, h);
          T* to = at(out, n, h);
          const A scale = A(1) / std::sqrt(product<A>(from, from, shape.width) + least);
          const A pull = scale * scale * scale * product<A>(from, d, shape.width);
          for (std::int64_t i = 0; i < shape.width; ++i) store(to[i], scale * widen(d[i]) - pull * widen(from[i]));
        });
  });
}

void scale_heads(ConstTensorView x, ConstTensorView factor, TensorView y, StreamView stream) {
  constexpr std::string_view op = "scale_heads";
  const Tokens shape = check_x(op, x);
  check_dense(op, "factor", factor, {shape.rows, shape.heads}, accumulator_of(x.dtype()));
  check_operand(op, "y", y, x.shape(), x.dtype());
  if (on_cuda(stream)) return cuda::scale_heads(x, factor, y, stream);
  visit_dtype<bfloat16, float, double>(x.dtype(), op, [&]<class T>() {
    using A = Accumulator<T>;
    const auto in = strided<T>(x);
    const auto out = strided<T>(y);
    const A* factors = factor.data<A>();
    for_each_token(
        shape, stream, [=](std::int64_t n, std::int64_t h) __attribute__((always_inline)) {
          const T* from = at(in, n, h);
          T* to = at(out, n, h);
          const A f = factors[n * shape.heads + h];
          for (std::int64_t i = 0; i < shape.width; ++i) store(to[i], f * widen(from[i]));
        });
  });
}

void scale_heads_backward(ConstTensorView dy, ConstTensorView x, ConstTensorView factor, TensorView dx, TensorView dfactor,
                          StreamView stream) {
  constexpr std::string_view op = "scale_heads_backward";
  const Tokens shape = check_x(op, x);
  check_operand(op, "dy", dy, x.shape(), x.dtype());
  check_dense(op, "factor", factor, {shape.rows, shape.heads}, accumulator_of(x.dtype()));
  check_operand(op, "dx", dx, x.shape(), x.dtype());
  check_dense(op, "dfactor", dfactor, {shape.rows, shape.heads}, accumulator_of(x.dtype()));
  if (on_cuda(stream)) return cuda::scale_heads_backward(dy, x, factor, dx, dfactor, stream);
  visit_dtype<bfloat16, float, double>(x.dtype(), op, [&]<class T>() {
    using A = Accumulator<T>;
    const auto in = strided<T>(x), gradient = strided<T>(dy);
    const auto out = strided<T>(dx);
    const A* factors = factor.data<A>();
    A* dfactors = dfactor.data<A>();
    for_each_token(
        shape, stream, [=](std::int64_t n, std::int64_t h) __attribute__((always_inline)) {
          const T *from = at(in, n, h), *d = at(gradient, n, h);
          T* to = at(out, n, h);
          const A f = factors[n * shape.heads + h];
          dfactors[n * shape.heads + h] = product<A>(from, d, shape.width);
          for (std::int64_t i = 0; i < shape.width; ++i) store(to[i], f * widen(d[i]));
        });
  });
}

void add_skip(ConstTensorView x, ConstTensorView skip, TensorView y, StreamView stream) {
  constexpr std::string_view op = "add_skip";
  const Tokens shape = check_x(op, x);
  check_dense(op, "skip", skip, {shape.heads}, x.dtype());
  check_operand(op, "y", y, x.shape(), x.dtype());
  if (on_cuda(stream)) return cuda::add_skip(x, skip, y, stream);
  visit_dtype<bfloat16, float, double>(x.dtype(), op, [&]<class T>() {
    const auto in = strided<T>(x);
    const auto out = strided<T>(y);
    const T* factors = skip.data<T>();
    for_each_token(
        shape, stream, [=](std::int64_t n, std::int64_t h) __attribute__((always_inline)) {
          const T* from = at(in, n, h);
          T* to = at(out, n, h);
          for (std::int64_t i = 0; i < shape.width; ++i) store(to[i], widen(to[i]) + widen(factors[h]) * widen(from[i]));
        });
  });
}

void add_skip_backward(ConstTensorView dy, ConstTensorView x, ConstTensorView skip, TensorView dx, TensorView dskip, StreamView stream) {
  constexpr std::string_view op = "add_skip_backward";
  const Tokens shape = check_x(op, x);
  check_operand(op, "dy", dy, x.shape(), x.dtype());
  check_dense(op, "skip", skip, {shape.heads}, x.dtype());
  check_operand(op, "dx", dx, x.shape(), x.dtype());
  check_dense(op, "dskip", dskip, {shape.heads}, accumulator_of(x.dtype()));
  if (on_cuda(stream)) return cuda::add_skip_backward(dy, x, skip, dx, dskip, stream);
  visit_dtype<bfloat16, float, double>(x.dtype(), op, [&]<class T>() {
    using A = Accumulator<T>;
    const auto in = strided<T>(x), gradient = strided<T>(dy);
    const auto out = strided<T>(dx);
    const T* factors = skip.data<T>();
    ChunkSums<A> sums(shape.rows, kTokenChunk, shape.heads);
    for_row_chunks(shape.rows, kTokenChunk, shape.heads * shape.width, stream,
                   [&](std::int64_t begin, std::int64_t end, std::int64_t chunk) {
                     A* sum = sums.of(chunk);
                     with_best_instructions([=]() __attribute__((always_inline)) {
                       for (std::int64_t n = begin; n < end; ++n) {
                         for (std::int64_t h = 0; h < shape.heads; ++h) {
                           const T *from = at(in, n, h), *d = at(gradient, n, h);
                           T* to = at(out, n, h);
                           sum[h] += product<A>(from, d, shape.width);
                           for (std::int64_t i = 0; i < shape.width; ++i) store(to[i], widen(to[i]) + widen(factors[h]) * widen(d[i]));
                         }
                       }
                     });
                   });
    sums.add_to(dskip.data<A>());
  });
}

void sum_heads(ConstTensorView x, TensorView y, StreamView stream) {
  const Tokens shape = check_x("sum_heads", x);
  check_operand("sum_heads", "y", y, {shape.rows, 1, shape.width}, x.dtype());
  if (on_cuda(stream)) return cuda::sum_heads(x, y, stream);
  visit_dtype<bfloat16, float, double>(x.dtype(), "sum_heads", [&]<class T>() {
    using A = Accumulator<T>;
    const auto in = strided<T>(x);
    const auto out = strided<T>(y);
    for_each_token(
        {shape.rows, 1, shape.width}, stream, [=](std::int64_t n, std::int64_t) __attribute__((always_inline)) {
          T* to = at(out, n, 0);
          for (std::int64_t i = 0; i < shape.width; ++i) {
            A sum = 0;
            for (std::int64_t h = 0; h < shape.heads; ++h) sum += widen(at(in, n, h)[i]);
            store(to[i], sum);
          }
        });
  });
}

}  // namespace periplus::kernels
