#pragma once
// What the plain kernels of linear attention share. A warp has a column of the state, its rows spread over the lanes, and walks
// along the run token by token; columns need nothing of each other, the delta rule's included.

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear_rungs.h"
#include "kernels/cuda/operands.cuh"

namespace periplus::kernels::cuda::plain {

constexpr int kWarps = 8;
constexpr unsigned kThreads = kWarps * 32;

/// Numbers lane, lane + 32, ... of a row.
template <class A, int depth>
struct Spread {
  A value[depth];
};

__device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x % 32); }
__device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x / 32); }

/// visit(i, number) for the lane's numbers of a row of `width`.
template <int depth, class Visit>
__device__ __forceinline__ void for_each_number(std::int64_t width, const Visit& visit) {
#pragma unroll
  for (int i = 0; i < depth; ++i) {
    if (lane() + 32 * i < width) visit(i, lane() + 32 * i);
  }
}

template <class A, int depth, class T>
__device__ Spread<A, depth> load_spread(const T* from, std::int64_t width, std::int64_t stride = 1) {
  Spread<A, depth> row{};
  for_each_number<depth>(width, [&](int i, std::int64_t number) { row.value[i] = static_cast<A>(from[number * stride]); });
  return row;
}

template <class A, int depth>
__device__ A dot(const Spread<A, depth>& a, const Spread<A, depth>& b) {
  A sum = 0;
#pragma unroll
  for (int i = 0; i < depth; ++i) sum += a.value[i] * b.value[i];
  return sum_over_lanes(sum);
}
/// to += factor * x
template <class A, int depth>
__device__ void add(A factor, const Spread<A, depth>& x, Spread<A, depth>& to) {
#pragma unroll
  for (int i = 0; i < depth; ++i) to.value[i] += factor * x.value[i];
}

template <int depth, class S, class A>
__device__ void decay_rows(const LinearProblem<S, A>& p, std::int64_t row, int head, Spread<A, depth>& state) {
  const std::int64_t width = p.shape.decay_width;
  if (width == 0) return;
  const A* const log_decay = at(p.log_decay, row, head);
  for_each_number<depth>(p.shape.width_qk, [&](int i, std::int64_t number) { state.value[i] *= exp(log_decay[width == 1 ? 0 : number]); });
}

/// Moves a column past a token. Returns what the token adds under its key.
template <int depth, class S, class A>
__device__ A advance(const LinearProblem<S, A>& p, std::int64_t row, int head, A value, Spread<A, depth>& state) {
  const auto key = load_spread<A, depth>(at(p.k, row, head), p.shape.width_qk);
  decay_rows(p, row, head, state);
  const A news = p.beta.data == nullptr ? value : *at(p.beta, row, head) * (value - dot(key, state));
  add(news, key, state);
  return news;
}

/// Moves the gradient of a column before a token. Returns that of the news.
template <int depth, class S, class A>
__device__ A retreat(const LinearProblem<S, A>& p, std::int64_t row, int head, A dout, Spread<A, depth>& dstate) {
  const auto query = load_spread<A, depth>(at(p.q, row, head), p.shape.width_qk);
  add(static_cast<A>(p.scale) * dout, query, dstate);
  A dnews = 0;
  if (p.k.data != nullptr) {
    const auto key = load_spread<A, depth>(at(p.k, row, head), p.shape.width_qk);
    dnews = dot(key, dstate);
    if (p.beta.data != nullptr) add(-*at(p.beta, row, head) * dnews, key, dstate);
  }
  decay_rows(p, row, head, dstate);
  return dnews;
}

/// Column `column` of a state row by row, or zeros.
template <int depth, class A>
__device__ Spread<A, depth> load_column(const Strided<const A>& states, bool continues, std::int64_t unit, int head,
                                        const LinearShape& shape, std::int64_t column) {
  if (!continues) return {};
  return load_spread<A, depth>(at(states, unit, head) + column, shape.width_qk, shape.width_v);
}

template <class T>
LinearProblem<DeviceValue<T>, AccumulatorOf<T>> problem_of(const LinearShape& shape, const LinearBlock& block, const UnitRun* runs,
                                                           std::int64_t run_count) {
  using A = AccumulatorOf<T>;
  return {shape,
          block.scale,
          strided<T>(block.q),
          strided<T>(block.k),
          strided<T>(block.v),
          strided<A>(block.log_decay),
          strided<A>(block.beta),
          runs,
          run_count};
}

/// Blocks for (item, `lines` columns or rows of its state, head).
inline dim3 grid_of(std::int64_t items, std::int64_t lines, std::int64_t heads) {
  return {static_cast<unsigned>(items), static_cast<unsigned>((lines + kWarps - 1) / kWarps), static_cast<unsigned>(heads)};
}

/// body.operator()<S, numbers a lane has of a row of `width`>() for the storage type.
template <class Body>
void visit(DType dtype, std::int64_t width, std::string_view op, const Body& body) {
  visit_dtype<double, float, bfloat16, float16>(dtype, op, [&]<class T>() {
    if (width <= 64) return body.template operator()<T, 2>();
    return body.template operator()<T, 8>();
  });
}

}  // namespace periplus::kernels::cuda::plain
