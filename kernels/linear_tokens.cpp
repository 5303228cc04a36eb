#include "kernels/linear_tokens.h"

#include <algorithm>
#include <cmath>

#include "kernels/cuda/linear_tokens.h"
#include "kernels/mixer/tokens.h"
#include "kernels/operands.h"

namespace periplus::kernels {
namespace {

struct Shape {
  std::int64_t rows, heads, d, e;
  Extents keys() const { return {rows, heads, d}; }
  Extents values() const { return {rows, heads, e}; }
};

/// to += scale (from - weight less)
template <class A, class T>
[[gnu::always_inline]] inline void add_difference(A scale, const T* from, A weight, const T* less, T* to, std::int64_t width) {
  for (std::int64_t i = 0; i < width; ++i) store(to[i], widen(to[i]) + scale * (widen(from[i]) - weight * widen(less[i])));
}

Shape check_block(std::string_view op, const LinearBlock& block) {
  check_dims(op, "q", block.q), check_dims(op, "v", block.v);
  require(!given(block.beta), "{}: the delta rule has no other direction; leave beta out", op);
  const Shape shape{block.q.size(0), block.q.size(1), block.q.size(2), block.v.size(2)};
  const DType dtype = block.q.dtype();
  check_operand(op, "q", block.q, shape.keys(), dtype), check_operand(op, "k", block.k, shape.keys(), dtype);
  check_operand(op, "v", block.v, shape.values(), dtype);
  return shape;
}

void check_gradients(std::string_view op, const LinearBlock& block, const Shape& shape, const LinearGradients& gradients) {
  const DType dtype = block.q.dtype();
  check_operand(op, "dq", gradients.dq, shape.keys(), dtype), check_operand(op, "dk", gradients.dk, shape.keys(), dtype);
  check_operand(op, "dv", gradients.dv, shape.values(), dtype);
  if (given(gradients.dlog_decay)) {
    check_dims(op, "dlog_decay", gradients.dlog_decay);
    check_operand(op, "dlog_decay", gradients.dlog_decay, {shape.rows, shape.heads, gradients.dlog_decay.size(2)}, accumulator_of(dtype));
  }
}

}  // namespace

void mirror_decay(ConstTensorView log_decay, std::span<const UnitRun> runs, TensorView mirrored, StreamView stream) {
  constexpr std::string_view op = "mirror_decay";
  check_dims(op, "log_decay", log_decay);
  check_operand(op, "log_decay", log_decay, log_decay.shape(), log_decay.dtype());
  check_operand(op, "mirrored", mirrored, log_decay.shape(), log_decay.dtype());
  check_runs(op, runs, log_decay.size(0));
  const std::int64_t heads = log_decay.size(1), width = log_decay.size(2);
  if (on_cuda(stream)) return cuda::mirror_decay(log_decay, runs, mirrored, stream);
  visit_dtype<float, double>(log_decay.dtype(), op, [&]<class A>() {
    const auto from = strided<A>(log_decay);
    const auto to = strided<A>(mirrored);
    for (const UnitRun& run : runs) {
      const std::int64_t last = run.row0 + run.rows - 1;
      for_each_token({run.rows, heads, width, run.row0}, stream, [=](std::int64_t row, std::int64_t head) {
        for (std::int64_t i = 0; i < width; ++i) at(to, row, head)[i] = row == last ? A{0} : at(from, row + 1, head)[i];
      });
    }
  });
}

void decay_states(ConstTensorView log_decay, std::span<const UnitRun> runs, TensorView states, StreamView stream) {
  constexpr std::string_view op = "decay_states";
  check_dims(op, "log_decay", log_decay), check_dims(op, "states", states);
  const std::int64_t heads = log_decay.size(1), width = log_decay.size(2), numbers = states.size(2);
  check_operand(op, "log_decay", log_decay, log_decay.shape(), log_decay.dtype());
  check_operand(op, "states", states, {states.size(0), heads, numbers}, log_decay.dtype());
  require(numbers % width == 0, "{}: {} decays for states of {} numbers, of which each must have equally many", op, width, numbers);
  check_runs(op, runs, log_decay.size(0));
  for (const UnitRun& run : runs) {
    require(run.unit >= 0 && run.unit < states.size(0), "{}: a run of unit {} of {}", op, run.unit, states.size(0));
  }
  if (on_cuda(stream)) return cuda::decay_states(log_decay, runs, states, stream);
  visit_dtype<float, double>(log_decay.dtype(), op, [&]<class A>() {
    const auto from = strided<A>(log_decay);
    const auto to = strided<A>(states);
    for (const UnitRun& run : runs) {
      if (!run.enters) continue;
      for_each_token({1, heads, numbers}, stream, [=](std::int64_t, std::int64_t head) {
        for (std::int64_t i = 0; i < width; ++i) {
          const A factor = std::exp(at(from, run.row0, head)[i]);
          A* const rows = at(to, run.unit, head) + i * (numbers / width);
          for (std::int64_t j = 0; j < numbers / width; ++j) rows[j] *= factor;
        }
      });
    }
  });
}

void add_mirrored(const LinearBlock& block, ConstTensorView mirrored, TensorView out, StreamView stream) {
  constexpr std::string_view op = "add_mirrored";
  const Shape shape = check_block(op, block);
  const DType dtype = block.q.dtype();
  check_operand(op, "mirrored", mirrored, shape.values(), dtype), check_operand(op, "out", out, shape.values(), dtype);
  if (on_cuda(stream)) return cuda::add_mirrored(block, mirrored, out, stream);
  visit_storage(dtype, op, [&]<class S>() {
    using A = Accumulator<S>;
    const auto q = strided<S>(block.q), k = strided<S>(block.k), v = strided<S>(block.v), from = strided<S>(mirrored);
    const auto to = strided<S>(out);
    for_each_token(
        {shape.rows, shape.heads, shape.d + shape.e}, stream,
        [ =, scale = static_cast<A>(block.scale) ](std::int64_t row, std::int64_t head) __attribute__((always_inline)) {
          const A self = product<A>(at(q, row, head), at(k, row, head), shape.d);
          add_difference(scale, at(from, row, head), self, at(v, row, head), at(to, row, head), shape.e);
        });
  });
}

namespace {

/// Gradients of the decays of a run: row r has that of the decay behind it in mirrored.
template <class S, class A>
void add_decay_gradients(const LinearBlock& block, const UnitRun& run, const LinearGradients& mirrored, const TensorView& dlog_decay,
                         StreamView stream) {
  const auto q = strided<S>(block.q), k = strided<S>(block.k);
  const auto dq = strided<S>(ConstTensorView(mirrored.dq)), dk = strided<S>(ConstTensorView(mirrored.dk));
  const auto from = strided<A>(ConstTensorView(mirrored.dlog_decay));
  const auto to = strided<A>(dlog_decay);
  const std::int64_t heads = block.q.size(1), d = block.q.size(2), width = dlog_decay.size(2);
  const A scale = static_cast<A>(block.scale);
  const auto sent = [=](std::int64_t row, std::int64_t head, std::int64_t i) {
    return widen(at(q, row, head)[i]) * widen(at(dq, row, head)[i]) - widen(at(k, row, head)[i]) * widen(at(dk, row, head)[i]);
  };
  for_each_token({run.rows, heads, width, run.row0}, stream, [=](std::int64_t row, std::int64_t head) {
    A* sum = at(to, row, head);
    if (row > run.row0) {
      for (std::int64_t i = 0; i < width; ++i) sum[i] += scale * at(from, row - 1, head)[i];
    } else if (run.enters) {
      for (std::int64_t i = 0; i < width; ++i) sum[i] += scale * at(from, row, head)[i];
      for (std::int64_t i = 0; i < d; ++i) sum[width == 1 ? 0 : i] -= scale * sent(row, head, i);
    }
  });
}

}  // namespace

void add_mirrored_backward(const LinearBlock& block, ConstTensorView dout, const LinearGradients& mirrored,
                           const LinearGradients& gradients, StreamView stream) {
  constexpr std::string_view op = "add_mirrored_backward";
  const Shape shape = check_block(op, block);
  const DType dtype = block.q.dtype();
  check_operand(op, "dout", dout, shape.values(), dtype);
  check_gradients(op, block, shape, mirrored), check_gradients(op, block, shape, gradients);
  require(mirrored.dlog_decay.shape() == gradients.dlog_decay.shape(), "{}: dlog_decay of the mirrored pass is {}, that of the result {}",
          op, to_string(mirrored.dlog_decay.shape()), to_string(gradients.dlog_decay.shape()));
  check_runs(op, block.runs, shape.rows);
  if (on_cuda(stream)) return cuda::add_mirrored_backward(block, dout, mirrored, gradients, stream);
  visit_storage(dtype, op, [&]<class S>() {
    using A = Accumulator<S>;
    const auto q = strided<S>(block.q), k = strided<S>(block.k), v = strided<S>(block.v), d = strided<S>(dout);
    const auto fq = strided<S>(mirrored.dq), fk = strided<S>(mirrored.dk), fv = strided<S>(mirrored.dv);
    const auto tq = strided<S>(gradients.dq), tk = strided<S>(gradients.dk), tv = strided<S>(gradients.dv);
    for_each_token(
        {shape.rows, shape.heads, 2 * (shape.d + shape.e)}, stream,
        [ =, scale = static_cast<A>(block.scale) ](std::int64_t row, std::int64_t head) __attribute__((always_inline)) {
          const A self = product<A>(at(q, row, head), at(k, row, head), shape.d);
          const A dself = product<A>(at(d, row, head), at(v, row, head), shape.e);
          add_difference<A, S>(scale, at(fq, row, head), dself, at(k, row, head), at(tq, row, head), shape.d);
          add_difference<A, S>(scale, at(fk, row, head), dself, at(q, row, head), at(tk, row, head), shape.d);
          add_difference<A, S>(scale, at(fv, row, head), self, at(d, row, head), at(tv, row, head), shape.e);
        });
    if (!given(gradients.dlog_decay)) return;
    for (const UnitRun& run : block.runs) add_decay_gradients<S, A>(block, run, mirrored, gradients.dlog_decay, stream);
  });
}

void extend_values(ConstTensorView values, TensorView extended, StreamView stream) {
  constexpr std::string_view op = "extend_values";
  check_dims(op, "values", values);
  const std::int64_t rows = values.size(0), heads = values.size(1), e = values.size(2);
  check_operand(op, "values", values, values.shape(), values.dtype());
  check_operand(op, "extended", extended, {rows, heads, e + 1}, values.dtype());
  if (on_cuda(stream)) return cuda::extend_values(values, extended, stream);
  visit_storage(values.dtype(), op, [&]<class S>() {
    const auto from = strided<S>(values);
    const auto to = strided<S>(extended);
    for_each_token({rows, heads, e}, stream, [=](std::int64_t row, std::int64_t head) {
      std::copy_n(at(from, row, head), e, at(to, row, head));
      store(at(to, row, head)[e], Accumulator<S>{1});
    });
  });
}

namespace {

Shape check_normalised(std::string_view op, const ConstTensorView& extended, const ConstTensorView& out,
                       const ConstTensorView& normaliser) {
  check_dims(op, "out", out);
  const Shape shape{out.size(0), out.size(1), 0, out.size(2)};
  check_operand(op, "out", out, shape.values(), out.dtype());
  check_operand(op, "extended", extended, {shape.rows, shape.heads, shape.e + 1}, out.dtype());
  check_operand(op, "normaliser", normaliser, {shape.rows, shape.heads, 1}, accumulator_of(out.dtype()));
  return shape;
}

}  // namespace

void normalise(ConstTensorView extended, double epsilon, TensorView out, TensorView normaliser, StreamView stream) {
  constexpr std::string_view op = "normalise";
  const Shape shape = check_normalised(op, extended, out, normaliser);
  if (on_cuda(stream)) return cuda::normalise(extended, epsilon, out, normaliser, stream);
  visit_storage(out.dtype(), op, [&]<class S>() {
    using A = Accumulator<S>;
    const auto from = strided<S>(extended);
    const auto to = strided<S>(out);
    const auto sums = strided<A>(normaliser);
    for_each_token(
        {shape.rows, shape.heads, shape.e}, stream,
        [ =, least = static_cast<A>(epsilon) ](std::int64_t row, std::int64_t head) __attribute__((always_inline)) {
          const S* numbers = at(from, row, head);
          const A z = widen(numbers[shape.e]) + least;
          *at(sums, row, head) = z;
          for (std::int64_t i = 0; i < shape.e; ++i) store(at(to, row, head)[i], widen(numbers[i]) / z);
        });
  });
}

void normalise_backward(ConstTensorView dout, ConstTensorView out, ConstTensorView normaliser, TensorView dextended, StreamView stream) {
  constexpr std::string_view op = "normalise_backward";
  const Shape shape = check_normalised(op, dextended, out, normaliser);
  check_operand(op, "dout", dout, shape.values(), out.dtype());
  if (on_cuda(stream)) return cuda::normalise_backward(dout, out, normaliser, dextended, stream);
  visit_storage(out.dtype(), op, [&]<class S>() {
    using A = Accumulator<S>;
    const auto d = strided<S>(dout), o = strided<S>(out);
    const auto sums = strided<A>(normaliser);
    const auto to = strided<S>(dextended);
    for_each_token(
        {shape.rows, shape.heads, 2 * shape.e}, stream, [=](std::int64_t row, std::int64_t head) __attribute__((always_inline)) {
          const A z = *at(sums, row, head);
          S* sum = at(to, row, head);
          for (std::int64_t i = 0; i < shape.e; ++i) store(sum[i], widen(at(d, row, head)[i]) / z);
          store(sum[shape.e], -product<A>(at(d, row, head), at(o, row, head), shape.e) / z);
        });
  });
}

}  // namespace periplus::kernels
