#include "kernels/cpu/attention_state.h"

#include <cmath>
#include <limits>

#include "kernels/cpu/parallel.h"
#include "kernels/operands.h"

namespace periplus::kernels::cpu {
namespace {

constexpr std::int64_t kRowsPerItem = 32;

template <class A>
constexpr A kEmpty = -std::numeric_limits<A>::infinity();

template <class Visit>
void for_each_row(const RowShape& shape, StreamView stream, const Visit& visit) {
  // These loops are bound by memory: count four flop an element to choose the team.
  const double flop = 4.0 * static_cast<double>(shape.rows * shape.heads * shape.width);
  for_each_item((shape.rows + kRowsPerItem - 1) / kRowsPerItem, flop, stream, [&](std::int64_t item, const Progress&) {
    const std::int64_t end = std::min((item + 1) * kRowsPerItem, shape.rows);
    for (std::int64_t row = item * kRowsPerItem; row < end; ++row) {
      for (std::int64_t head = 0; head < shape.heads; ++head) visit(row, head);
    }
  });
}

// Independent partial sums in a fixed order: vectorises without reassociation by the compiler.
template <class A, class X, class Y>
A dot(const X* x, const Y* y, std::int64_t count) {
  constexpr std::int64_t kLanes = 16;
  A sums[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (std::int64_t lane = 0; lane < kLanes; ++lane) sums[lane] += static_cast<A>(x[i + lane]) * static_cast<A>(y[i + lane]);
  }
  for (; i < count; ++i) sums[i % kLanes] += static_cast<A>(x[i]) * static_cast<A>(y[i]);
  A sum = 0;
  for (const A lane : sums) sum += lane;
  return sum;
}

}  // namespace

template <class A>
void merge(const RowShape& shape, Strided<const A> part_out, Strided<const A> part_lse, Strided<A> out, Strided<A> lse, StreamView stream) {
  for_each_row(shape, stream, [&](std::int64_t row, std::int64_t head) {
    const A part = *at(part_lse, row, head);
    A& state = *at(lse, row, head);
    if (part == kEmpty<A>) return;
    const A* from = at(part_out, row, head);
    A* to = at(out, row, head);
    if (state == kEmpty<A>) {
      std::copy(from, from + shape.width, to);
      state = part;
      return;
    }
    const A weight = 1 / (1 + std::exp(state - part));
    for (std::int64_t i = 0; i < shape.width; ++i) to[i] += weight * (from[i] - to[i]);
    state = std::max(state, part) + std::log1p(std::exp(-std::abs(state - part)));
  });
}

template <class A, class S>
void finish(const RowShape& shape, Strided<const A> state_out, Strided<const A> state_lse, Strided<const A> sink, Strided<S> out,
            Strided<A> lse, StreamView stream) {
  for_each_row(shape, stream, [&](std::int64_t row, std::int64_t head) {
    const A* from = at(state_out, row, head);
    S* to = at(out, row, head);
    A total = *at(state_lse, row, head);
    A factor = 1;
    if (sink.data != nullptr) {
      const A logit = *at(sink, 0, head);
      // exp(l - logaddexp(l, z)) without the cancellation of the two logs.
      factor = total == kEmpty<A> ? A{0} : 1 / (1 + std::exp(logit - total));
      if (total == kEmpty<A>) {
        total = logit;
      } else if (logit != kEmpty<A>) {
        total = std::max(total, logit) + std::log1p(std::exp(-std::abs(total - logit)));
      }
    }
    for (std::int64_t i = 0; i < shape.width; ++i) to[i] = static_cast<S>(factor * from[i]);
    *at(lse, row, head) = total;
  });
}

template <class A, class S, class O>
void delta(const RowShape& shape, Strided<const S> dout, Strided<const O> out, Strided<const A> dlse, Strided<A> delta, StreamView stream) {
  for_each_row(shape, stream, [&](std::int64_t row, std::int64_t head) {
    const A product = dot<A>(at(dout, row, head), at(out, row, head), shape.width);
    *at(delta, row, head) = dlse.data == nullptr ? product : product - *at(dlse, row, head);
  });
}

template <class A>
void sink_gradient(const RowShape& shape, Strided<const A> lse, Strided<const A> sink, Strided<const A> delta, Strided<A> dsink,
                   StreamView stream) {
  constexpr std::int64_t kRowsPerPoll = 1024;
  constexpr double kFlopPerRow = 40;  // an exponential
  // Rows of a head stay in order: the sum must not depend on the number of threads.
  for_each_item(shape.heads, kFlopPerRow * static_cast<double>(shape.rows * shape.heads), stream,
                [&](std::int64_t head, const Progress& progress) {
                  const double logit = static_cast<double>(*at(sink, 0, head));
                  double sum = 0;
                  for (std::int64_t row = 0; row < shape.rows; ++row) {
                    const double total = static_cast<double>(*at(lse, row, head));
                    if (total != kEmpty<double>) sum -= std::exp(logit - total) * static_cast<double>(*at(delta, row, head));
                    if (row % kRowsPerPoll == 0) progress();
                  }
                  *at(dsink, 0, head) = static_cast<A>(sum);
                });
}

#define PERIPLUS_INSTANTIATE_FINISH(A, S) \
  template void finish(const RowShape&, Strided<const A>, Strided<const A>, Strided<const A>, Strided<S>, Strided<A>, StreamView);
#define PERIPLUS_INSTANTIATE_DELTA(A, S, O) \
  template void delta(const RowShape&, Strided<const S>, Strided<const O>, Strided<const A>, Strided<A>, StreamView);

template void merge(const RowShape&, Strided<const double>, Strided<const double>, Strided<double>, Strided<double>, StreamView);
template void merge(const RowShape&, Strided<const float>, Strided<const float>, Strided<float>, Strided<float>, StreamView);
PERIPLUS_INSTANTIATE_FINISH(double, double)
PERIPLUS_INSTANTIATE_FINISH(float, float)
PERIPLUS_INSTANTIATE_FINISH(float, bfloat16)
PERIPLUS_INSTANTIATE_FINISH(float, float16)
PERIPLUS_INSTANTIATE_DELTA(double, double, double)
PERIPLUS_INSTANTIATE_DELTA(float, float, float)
PERIPLUS_INSTANTIATE_DELTA(float, float, bfloat16)
PERIPLUS_INSTANTIATE_DELTA(float, float, float16)
PERIPLUS_INSTANTIATE_DELTA(float, bfloat16, float)
PERIPLUS_INSTANTIATE_DELTA(float, bfloat16, bfloat16)
PERIPLUS_INSTANTIATE_DELTA(float, bfloat16, float16)
PERIPLUS_INSTANTIATE_DELTA(float, float16, float)
PERIPLUS_INSTANTIATE_DELTA(float, float16, bfloat16)
PERIPLUS_INSTANTIATE_DELTA(float, float16, float16)
template void sink_gradient(const RowShape&, Strided<const double>, Strided<const double>, Strided<const double>, Strided<double>,
                            StreamView);
template void sink_gradient(const RowShape&, Strided<const float>, Strided<const float>, Strided<const float>, Strided<float>, StreamView);

#undef PERIPLUS_INSTANTIATE_FINISH
#undef PERIPLUS_INSTANTIATE_DELTA

}  // namespace periplus::kernels::cpu
