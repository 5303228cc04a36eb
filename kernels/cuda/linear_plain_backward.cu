// Gradients of linear attention and the delta rule token by token. Sums over the value's channels run along rows of the state, so
// that after the columns have given the gradients of what tokens add (dn, of n), rows give the rest:
//
//   columns, forward    n                                    the delta rule only
//   columns, backward   dn, dv
//   rows, forward       dq = scale S dout, y = S' dn         S' is the decayed state that a token finds
//   rows, backward      dk = G n - beta y, dlog_decay        G is the gradient of the state that it leaves, queries of its own included
//
// dlog_decay of a channel is <dS', S'> of its row, which grows from token to token backwards by q dq - k (G n + beta y), starting
// from <S, dS> behind the run.
#include "kernels/cuda/linear_plain.cuh"
#include "kernels/cuda/resident.h"
#include "kernels/cuda/scratch.cuh"

namespace periplus::kernels::cuda::plain {
namespace {

template <class S, class A>
struct Backward {
  LinearProblem<S, A> p;
  Strided<const A> incoming, doutgoing;
  Strided<const S> dout;
  LinearResults<S, A> results;
  Strided<A> news, dnews;    ///< [N,H,E]; null without the delta rule.
  Strided<A> taken;          ///< y [N,H,D]; null without the delta rule.
  Strided<A> pulled, slope;  ///< q dq and dlog_decay of each channel [N,H,D]; null without decay.
  Strided<A> tail;           ///< <S, dS> behind each run, by channel [runs,H,D].
};

template <int depth, class S, class A>
__global__ void __launch_bounds__(kThreads) find_news(const Backward<S, A> b) {
  const LinearProblem<S, A>& p = b.p;
  const UnitRun run = p.runs[blockIdx.x];
  const int head = static_cast<int>(blockIdx.z);
  const std::int64_t column = blockIdx.y * kWarps + warp();
  if (column >= p.shape.width_v) return;
  auto state = load_column<depth>(b.incoming, run.enters, run.unit, head, p.shape, column);
  for (std::int64_t row = run.row0; row < run.row0 + run.rows; ++row) {
    const A news = advance(p, row, head, static_cast<A>(at(p.v, row, head)[column]), state);
    if (lane() == 0) at(b.news, row, head)[column] = news;
  }
}

template <int depth, class S, class A>
__global__ void __launch_bounds__(kThreads) columns_backward(const Backward<S, A> b) {
  const LinearProblem<S, A>& p = b.p;
  const UnitRun run = p.runs[blockIdx.x];
  const int head = static_cast<int>(blockIdx.z);
  const std::int64_t column = blockIdx.y * kWarps + warp();
  if (column >= p.shape.width_v) return;
  auto dstate = load_column<depth>(b.doutgoing, run.leaves, run.unit, head, p.shape, column);
  for (std::int64_t row = run.row0 + run.rows - 1; row >= run.row0; --row) {
    const A dnews = retreat(p, row, head, static_cast<A>(at(b.dout, row, head)[column]), dstate);
    if (lane() != 0) continue;
    const bool delta_rule = p.beta.data != nullptr;
    at(b.results.dv, row, head)[column] = static_cast<S>(delta_rule ? *at(p.beta, row, head) * dnews : dnews);
    if (delta_rule) at(b.dnews, row, head)[column] = dnews;
  }
}

/// A row of what tokens add.
template <int depth, class S, class A>
__device__ Spread<A, depth> load_news(const Backward<S, A>& b, std::int64_t row, int head) {
  if (b.news.data == nullptr) return load_spread<A, depth>(at(b.p.v, row, head), b.p.shape.width_v);
  return load_spread<A, depth>(at(b.news, row, head), b.p.shape.width_v);
}

/// Row `line` of a state, or zeros.
template <int depth, class A>
__device__ Spread<A, depth> load_line(const Strided<const A>& states, bool continues, std::int64_t unit, int head, const LinearShape& shape,
                                      std::int64_t line) {
  if (!continues) return {};
  return load_spread<A, depth>(at(states, unit, head) + line * shape.width_v, shape.width_v);
}

template <class S, class A>
__device__ A decay_of_line(const LinearProblem<S, A>& p, std::int64_t row, int head, std::int64_t line) {
  return p.shape.decay_width == 0 ? A{1} : exp(at(p.log_decay, row, head)[p.shape.decay_width == 1 ? 0 : line]);
}

template <class A, int depth>
__device__ void scale(A factor, Spread<A, depth>& x) {
#pragma unroll
  for (int i = 0; i < depth; ++i) x.value[i] *= factor;
}

template <int depth, class S, class A>
__global__ void __launch_bounds__(kThreads) rows_forward(const Backward<S, A> b) {
  const LinearProblem<S, A>& p = b.p;
  const UnitRun run = p.runs[blockIdx.x];
  const int head = static_cast<int>(blockIdx.z);
  const std::int64_t line = blockIdx.y * kWarps + warp();
  if (line >= p.shape.width_qk) return;
  auto state = load_line<depth>(b.incoming, run.enters, run.unit, head, p.shape, line);
  for (std::int64_t row = run.row0; row < run.row0 + run.rows; ++row) {
    scale(decay_of_line(p, row, head, line), state);
    if (b.taken.data != nullptr) {
      const A taken = dot(state, load_spread<A, depth>(at(b.dnews, row, head), p.shape.width_v));
      if (lane() == 0) at(b.taken, row, head)[line] = taken;
    }
    add(static_cast<A>(at(p.k, row, head)[line]), load_news<depth>(b, row, head), state);
    const A dq = static_cast<A>(p.scale) * dot(state, load_spread<A, depth>(at(b.dout, row, head), p.shape.width_v));
    if (lane() != 0) continue;
    at(b.results.dq, row, head)[line] = static_cast<S>(dq);
    if (b.pulled.data != nullptr) at(b.pulled, row, head)[line] = static_cast<A>(at(p.q, row, head)[line]) * dq;
  }
  if (b.tail.data == nullptr) return;
  const A tail = dot(state, load_line<depth>(b.doutgoing, run.leaves, run.unit, head, p.shape, line));
  if (lane() == 0) at(b.tail, blockIdx.x, head)[line] = tail;
}

template <int depth, class S, class A>
__global__ void __launch_bounds__(kThreads) rows_backward(const Backward<S, A> b) {
  const LinearProblem<S, A>& p = b.p;
  const UnitRun run = p.runs[blockIdx.x];
  const int head = static_cast<int>(blockIdx.z);
  const std::int64_t line = blockIdx.y * kWarps + warp();
  if (line >= p.shape.width_qk) return;
  auto dstate = load_line<depth>(b.doutgoing, run.leaves, run.unit, head, p.shape, line);
  double slope = b.tail.data == nullptr ? 0 : static_cast<double>(at(b.tail, blockIdx.x, head)[line]);  // of f64: a sum over the run
  for (std::int64_t row = run.row0 + run.rows - 1; row >= run.row0; --row) {
    const A key = static_cast<A>(at(p.k, row, head)[line]);
    add(static_cast<A>(p.scale) * static_cast<A>(at(p.q, row, head)[line]), load_spread<A, depth>(at(b.dout, row, head), p.shape.width_v),
        dstate);
    const A given = dot(dstate, load_news<depth>(b, row, head));
    A taken = 0;
    if (b.taken.data != nullptr) {
      const A beta = *at(p.beta, row, head);
      taken = beta * at(b.taken, row, head)[line];
      add(-beta * key, load_spread<A, depth>(at(b.dnews, row, head), p.shape.width_v), dstate);
    }
    scale(decay_of_line(p, row, head, line), dstate);
    if (lane() != 0) continue;
    at(b.results.dk, row, head)[line] = static_cast<S>(given - taken);
    if (b.slope.data == nullptr) continue;
    slope += static_cast<double>(at(b.pulled, row, head)[line]) - static_cast<double>(key) * static_cast<double>(given + taken);
    const bool begins = row == run.row0 && !run.enters;
    at(b.slope, row, head)[line] = begins ? A{0} : static_cast<A>(slope);
  }
}

/// dbeta = <dn, v> - <k, y>, and the sum of dlog_decay over channels where there is one decay per head.
template <class S, class A>
__global__ void __launch_bounds__(kThreads) sum_channels(const Backward<S, A> b) {
  const LinearProblem<S, A>& p = b.p;
  const UnitRun run = p.runs[blockIdx.x];
  const int head = static_cast<int>(blockIdx.y);
  for (std::int64_t row = run.row0 + warp(); row < run.row0 + run.rows; row += kWarps) {
    A dbeta = 0, slope = 0;
    for (std::int64_t d = lane(); d < p.shape.width_qk; d += 32) {
      if (b.taken.data != nullptr) dbeta -= static_cast<A>(at(p.k, row, head)[d]) * at(b.taken, row, head)[d];
      if (b.slope.data != nullptr) slope += at(b.slope, row, head)[d];
    }
    for (std::int64_t e = lane(); e < p.shape.width_v && b.dnews.data != nullptr; e += 32) {
      dbeta += at(b.dnews, row, head)[e] * static_cast<A>(at(p.v, row, head)[e]);
    }
    dbeta = sum_over_lanes(dbeta);
    slope = sum_over_lanes(slope);
    if (lane() != 0) continue;
    if (b.taken.data != nullptr) *at(b.results.dbeta, row, head) = dbeta;
    if (p.shape.decay_width == 1) *at(b.results.dlog_decay, row, head) = slope;
  }
}

/// [rows, heads, width] of scratch, or nothing.
template <class A>
struct Table {
  Table(bool needed, std::int64_t rows, std::int64_t heads, std::int64_t width, cudaStream_t stream)
      : memory(needed ? rows * heads * width : 0, stream), view{needed ? memory.data() : nullptr, heads * width, width} {}
  Scratch<A> memory;
  Strided<A> view;
};

template <class T>
void launch_backward(Backward<DeviceValue<T>, AccumulatorOf<T>> b, cudaStream_t stream) {
  using S = DeviceValue<T>;
  using A = AccumulatorOf<T>;
  const LinearShape& shape = b.p.shape;
  const bool delta_rule = b.p.beta.data != nullptr, decays = shape.decay_width > 0;
  const std::int64_t rows = shape.rows, heads = shape.heads, runs = b.p.run_count, width_qk = shape.width_qk, width_v = shape.width_v;
  const Table<A> news(delta_rule, rows, heads, width_v, stream), dnews(delta_rule, rows, heads, width_v, stream);
  const Table<A> taken(delta_rule, rows, heads, width_qk, stream), pulled(decays, rows, heads, width_qk, stream);
  const Table<A> slope(decays && shape.decay_width != width_qk, rows, heads, width_qk, stream), tail(decays, runs, heads, width_qk, stream);
  b.news = news.view, b.dnews = dnews.view, b.taken = taken.view, b.pulled = pulled.view, b.tail = tail.view;
  b.slope = shape.decay_width == width_qk ? b.results.dlog_decay : slope.view;
  const auto run = [&](auto kernel, std::int64_t lines) {
    launch("launch of plain linear attention gradients", kernel, grid_of(runs, lines, heads), kThreads, 0, stream, b);
  };
  const auto with_depth = [](std::int64_t width, const auto& body) {
    if (width <= 64) return body(std::integral_constant<int, 2>{});
    return body(std::integral_constant<int, 8>{});
  };
  with_depth(width_qk, [&]<int depth>(std::integral_constant<int, depth>) {
    if (delta_rule) run(find_news<depth, S, A>, width_v);
    run(columns_backward<depth, S, A>, width_v);
  });
  with_depth(width_v, [&]<int depth>(std::integral_constant<int, depth>) {
    run(rows_forward<depth, S, A>, width_qk);
    run(rows_backward<depth, S, A>, width_qk);
  });
  const dim3 grid(static_cast<unsigned>(runs), static_cast<unsigned>(heads));
  launch("launch of plain linear attention sums", sum_channels<S, A>, grid, kThreads, 0, stream, b);
}

}  // namespace

void unit_apply_backward(const LinearShape& shape, const LinearBlock& block, ConstTensorView incoming, ConstTensorView dout,
                         ConstTensorView doutgoing, const LinearGradients& gradients, StreamView stream) {
  const cudaStream_t native = launch_stream(stream);
  visit_dtype<double, float, bfloat16, float16>(dout.dtype(), "unit_apply_backward", [&]<class T>() {
    using A = AccumulatorOf<T>;
    Backward<DeviceValue<T>, A> b{};
    const auto runs = resident(block.runs, stream);
    b.p = problem_of<T>(shape, block, runs.get(), std::ssize(block.runs));
    b.incoming = strided<A>(incoming);
    b.doutgoing = strided<A>(doutgoing);
    b.dout = strided<T>(dout);
    b.results = {strided<T>(gradients.dq), strided<T>(gradients.dk), strided<T>(gradients.dv), strided<A>(gradients.dlog_decay),
                 strided<A>(gradients.dbeta)};
    launch_backward<T>(b, native);
  });
}

}  // namespace periplus::kernels::cuda::plain
