// Attention as its definition says, one thread a result element: every type and head width, for tests and for what faster
// kernels refuse.
#include <limits>

#include "kernels/cuda/operands.cuh"
#include "kernels/cuda/rungs.h"
#include "kernels/cuda/tables.h"

namespace periplus::kernels::cuda::plain {
namespace {

constexpr int kThreads = 128;
/// Blocks a multiprocessor, at least: named only because ptxas spills for more than it needs otherwise.
constexpr int kBlocks = 4;
constexpr ScheduleTiles kTiles{.rows = 4, .columns = 128};

__device__ bool allows(const MaskBand& band, int q, int k) {
  return q >= band.q0 && q < band.q1 && k >= band.k0 && k < band.k1 && k - q >= band.lo && k - q <= band.hi;
}

/// visit(column) in ascending order.
template <RowAxis axis, class Visit>
__device__ __forceinline__ void for_each_allowed(const ResidentSchedule& schedule, const RowTile& tile, int row, const Visit& visit) {
  for (int c = tile.first; c < tile.first + tile.columns; ++c) {
    const ColumnTile columns = schedule.columns[c];
    for (int column = columns.begin; column < columns.begin + columns.count; ++column) {
      bool allowed = columns.masks == 0;
      for (int m = columns.first_mask; m < columns.first_mask + columns.masks; ++m) {
        allowed = allowed || (axis == RowAxis::query ? allows(schedule.masks[m], row, column) : allows(schedule.masks[m], column, row));
      }
      if (allowed) visit(column);
    }
  }
}

template <class A, class X, class Y>
__device__ __forceinline__ A dot(const X* x, const Y* y, int count) {
  A sum = 0;
#pragma unroll 1
  for (int i = 0; i < count; ++i) sum += static_cast<A>(x[i]) * static_cast<A>(y[i]);
  return sum;
}

/// Query heads per key/value head. 32 bits: a 64-bit division is a call, around which registers spill.
__device__ __forceinline__ int group_of(const AttentionShape& shape) {
  return static_cast<int>(shape.heads) / static_cast<int>(shape.kv_heads);
}

template <class A, class Problem>
__device__ __forceinline__ A score_of(const Problem& p, int q, int head, int k) {
  const auto* const key = at(p.k, k, head / group_of(p.shape));
  const A score = static_cast<A>(p.scale) * dot<A>(at(p.q, q, head), key, static_cast<int>(p.shape.width_qk));
  const A cap = static_cast<A>(p.softcap);
  return cap > 0 ? cap * tanh(score / cap) : score;
}

/// compute(tile, row, head, column) by one thread for each element of the rows of this block's tile; then finish(row, head)
/// by one thread for each row.
template <class Compute, class Finish>
__device__ __forceinline__ void for_each_element(const ResidentSchedule& schedule, std::int64_t width, const Compute& compute,
                                                 const Finish& finish) {
  const RowTile tile = schedule.rows[blockIdx.x];
  const int head = static_cast<int>(blockIdx.y);
  for (int row = tile.begin; row < tile.begin + tile.count; ++row) {
    for (int column = threadIdx.x; column < width; column += kThreads) compute(tile, row, head, column);
    __syncthreads();
    if (threadIdx.x == 0) finish(row, head);
  }
}

/// Each thread works out the denominator again: no thread needs another's result.
template <class S, class A>
__global__ void __launch_bounds__(kThreads, kBlocks) forward(const ForwardProblem<S, A> p, const ResidentSchedule schedule) {
  __shared__ A lse;
  const auto element = [&](const RowTile& tile, int q, int head, int column) {
    A& out = at(p.out, q, head)[column];
    const A old = p.overwrite ? kEmpty<A> : *at(p.lse, q, head);
    A top = old;
    for_each_allowed<RowAxis::query>(schedule, tile, q, [&](int k) { top = fmax(top, score_of<A>(p, q, head, k)); });
    const A origin = top == kEmpty<A> ? 0 : top;
    A total = exp(old - origin);
    A sum = total == 0 ? 0 : total * out;
    bool any = p.overwrite;
    for_each_allowed<RowAxis::query>(schedule, tile, q, [&](int k) {
      const A weight = exp(score_of<A>(p, q, head, k) - origin);
      total += weight;
      sum += weight * static_cast<A>(at(p.v, k, head / group_of(p.shape))[column]);
      any = true;
    });
    // Compare with zero, not "> 0": a NaN must stay visible.
    if (any) out = total == 0 ? 0 : sum / total;
    if (column == 0) lse = !any ? old : total == 0 ? kEmpty<A> : top + log(total);
  };
  for_each_element(schedule, p.shape.width_v, element, [&](int q, int head) { *at(p.lse, q, head) = lse; });
}

template <class A>
struct Slope {
  A weight, score;  ///< d out / d v, d loss / d (scaled score)
};

template <class S, class A>
__device__ __forceinline__ Slope<A> slope_of(const BackwardProblem<S, A>& p, int q, int head, int k) {
  const A score = score_of<A>(p, q, head, k);
  const A weight = exp(score - *at(p.lse, q, head));
  const A dweight = dot<A>(at(p.dout, q, head), at(p.v, k, head / group_of(p.shape)), static_cast<int>(p.shape.width_v));
  A slope = weight * (dweight - *at(p.delta, q, head));
  if (p.softcap > 0) {
    const A ratio = score / static_cast<A>(p.softcap);
    slope *= 1 - ratio * ratio;
  }
  return {weight, slope};
}

template <class A>
__device__ __forceinline__ void store(A value, bool overwrite, A& to) {
  to = overwrite ? value : to + value;
}

template <class S, class A>
__global__ void __launch_bounds__(kThreads, kBlocks) backward_queries(const BackwardProblem<S, A> p, const ResidentSchedule schedule) {
  const auto element = [&](const RowTile& tile, int q, int head, int column) {
    A sum = 0;
    if (*at(p.lse, q, head) != kEmpty<A>) {
      for_each_allowed<RowAxis::query>(schedule, tile, q, [&](int k) {
        sum += slope_of(p, q, head, k).score * static_cast<A>(at(p.k, k, head / group_of(p.shape))[column]);
      });
    }
    store(static_cast<A>(p.scale) * sum, p.overwrite_dq, at(p.dq, q, head)[column]);
  };
  for_each_element(schedule, p.shape.width_qk, element, [](int, int) {});
}

template <class S, class A>
__global__ void __launch_bounds__(kThreads, kBlocks) backward_keys(const BackwardProblem<S, A> p, const ResidentSchedule schedule) {
  const int group = group_of(p.shape);
  const auto element = [&](const RowTile& tile, int k, int kv, int column) {
    const bool in_k = column < p.shape.width_qk, in_v = column < p.shape.width_v;
    A dk = 0, dv = 0;
    for (int head = kv * group; head < (kv + 1) * group; ++head) {
      for_each_allowed<RowAxis::key>(schedule, tile, k, [&](int q) {
        if (*at(p.lse, q, head) == kEmpty<A>) return;
        const Slope<A> slope = slope_of(p, q, head, k);
        if (in_k) dk += slope.score * static_cast<A>(at(p.q, q, head)[column]);
        if (in_v) dv += slope.weight * static_cast<A>(at(p.dout, q, head)[column]);
      });
    }
    if (in_k) store(static_cast<A>(p.scale) * dk, p.overwrite_dkdv, at(p.dk, k, kv)[column]);
    if (in_v) store(dv, p.overwrite_dkdv, at(p.dv, k, kv)[column]);
  };
  for_each_element(schedule, max(p.shape.width_qk, p.shape.width_v), element, [](int, int) {});
}

template <class Problem>
void launch(void (*kernel)(Problem, ResidentSchedule), const Problem& problem, std::span<const Band> bands, RowAxis axis,
            std::int64_t heads, StreamView stream) {
  const cudaStream_t native = launch_stream(stream);
  const ResidentSchedule schedule = resident_schedule(bands, axis, problem.shape.query_rows, problem.shape.key_rows, kTiles, 0, stream);
  if (schedule.row_tiles == 0) return;
  const dim3 grid(static_cast<unsigned>(schedule.row_tiles), static_cast<unsigned>(heads));
  kernel<<<grid, kThreads, 0, native>>>(problem, schedule);
  periplus::cuda::check(cudaGetLastError(), "launch of plain attention");
}

}  // namespace

void attend(const ForwardCall& call, StreamView stream) {
  const auto& [q, k, v, bands, scale, softcap] = call.block;
  visit_dtype<double, float, bfloat16, float16>(q.dtype(), "attend", [&]<class T>() {
    using S = DeviceValue<T>;
    using A = AccumulatorOf<T>;
    const ForwardProblem<S, A> problem{call.shape,
                                       scale,
                                       softcap,
                                       strided<T>(q),
                                       strided<T>(k),
                                       strided<T>(v),
                                       strided<A>(call.state.out),
                                       strided<A>(call.state.lse),
                                       call.update == Update::overwrite};
    launch<ForwardProblem<S, A>>(forward<S, A>, problem, bands, RowAxis::query, call.shape.heads, stream);
  });
}

void attend_backward(const BackwardCall& call, StreamView stream) {
  const auto& [q, k, v, bands, scale, softcap] = call.block;
  const auto& [dq, dk, dv, update_dq, update_dkdv] = call.gradients;
  visit_dtype<double, float, bfloat16, float16>(q.dtype(), "attend_backward", [&]<class T>() {
    using S = DeviceValue<T>;
    using A = AccumulatorOf<T>;
    const BackwardProblem<S, A> problem{call.shape,
                                        scale,
                                        softcap,
                                        strided<T>(q),
                                        strided<T>(k),
                                        strided<T>(v),
                                        strided<T>(call.dout),
                                        strided<A>(call.lse),
                                        strided<A>(call.delta),
                                        strided<A>(dq),
                                        strided<A>(dk),
                                        strided<A>(dv),
                                        update_dq == Update::overwrite,
                                        update_dkdv == Update::overwrite};
    launch<BackwardProblem<S, A>>(backward_queries<S, A>, problem, bands, RowAxis::query, call.shape.heads, stream);
    launch<BackwardProblem<S, A>>(backward_keys<S, A>, problem, bands, RowAxis::key, call.shape.kv_heads, stream);
  });
}

}  // namespace periplus::kernels::cuda::plain
