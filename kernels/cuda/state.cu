// merge, finish and delta: one pass, bound by memory. What they compute: kernels/cpu/attention_state.cpp.
#include <algorithm>
#include <limits>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/operands.cuh"
#include "kernels/cuda/several.cuh"

namespace periplus::kernels::cuda {
namespace {

constexpr int kThreads = 256;

struct RowShape {
  int rows, heads, width;
  int lanes;  ///< That share a row: a power of two up to 32.
};

template <class A>
__device__ A log_of_sum(A a, A b) {
  return fmax(a, b) + log1p(exp(-fabs(a - b)));
}

/// visit(row, head, active) by every warp as a whole, so that lanes of a row may exchange; inactive lanes have no row.
template <class Visit>
__device__ __forceinline__ void for_each_row(const RowShape& shape, const Visit& visit) {
  const int per_warp = 32 / shape.lanes;
  const std::int64_t total = std::int64_t{shape.rows} * shape.heads;
  const std::int64_t step = std::int64_t{gridDim.x} * (kThreads / 32) * per_warp;
  const std::int64_t warp = std::int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32;
  for (std::int64_t first = warp * per_warp; first < total; first += step) {
    const std::int64_t item = first + threadIdx.x % 32 / shape.lanes;
    const bool active = item < total;
    const int row = active ? static_cast<int>(item / shape.heads) : 0;
    visit(row, active ? static_cast<int>(item - std::int64_t{row} * shape.heads) : 0, active);
  }
}

/// The first columns of every access by this lane.
template <int count, class Visit>
__device__ __forceinline__ void for_each_column(const RowShape& shape, const Visit& visit) {
  for (int column = threadIdx.x % shape.lanes * count; column < shape.width; column += shape.lanes * count) visit(column);
}

__device__ __forceinline__ bool leads(const RowShape& shape) { return threadIdx.x % shape.lanes == 0; }

template <int count, class A>
__global__ void __launch_bounds__(kThreads, 4)
    merge_rows(RowShape shape, Strided<const A> part_out, Strided<const A> part_lse, Strided<A> out, Strided<A> lse) {
  for_each_row(shape, [&](int row, int head, bool active) {
    const A part = active ? *at(part_lse, row, head) : kEmpty<A>;
    const A state = active ? *at(lse, row, head) : kEmpty<A>;
    __syncwarp();  // the leader changes the lse below
    if (part == kEmpty<A>) return;
    const bool copies = state == kEmpty<A>;
    const A weight = 1 / (1 + exp(state - part));
    const A* const from = at(part_out, row, head);
    A* const to = at(out, row, head);
    for_each_column<count>(shape, [&](int column) {
      auto values = load<count>(from + column);
      if (!copies) {
        const auto old = load<count>(to + column);
#pragma unroll
        for (int i = 0; i < count; ++i) values.value[i] = old.value[i] + weight * (values.value[i] - old.value[i]);
      }
      store<count>(values, to + column);
    });
    if (leads(shape)) *at(lse, row, head) = copies ? part : log_of_sum(state, part);
  });
}

template <int count, class A, class S>
__global__ void __launch_bounds__(kThreads, 4) finish_rows(RowShape shape, Strided<const A> state_out, Strided<const A> state_lse,
                                                           Strided<const A> sink, Strided<S> out, Strided<A> lse) {
  for_each_row(shape, [&](int row, int head, bool active) {
    if (!active) return;
    A total = *at(state_lse, row, head), factor = 1;
    if (sink.data != nullptr) {
      const A logit = *at(sink, 0, head);
      // exp(l - logaddexp(l, z)) without the cancellation of the two logs.
      factor = total == kEmpty<A> ? A{0} : 1 / (1 + exp(logit - total));
      if (total == kEmpty<A>) {
        total = logit;
      } else if (logit != kEmpty<A>) {
        total = log_of_sum(total, logit);
      }
    }
    const A* const from = at(state_out, row, head);
    S* const to = at(out, row, head);
    for_each_column<count>(shape, [&](int column) {
      const auto values = load<count>(from + column);
      Several<S, count> cast;
#pragma unroll
      for (int i = 0; i < count; ++i) cast.value[i] = static_cast<S>(factor * values.value[i]);
      store<count>(cast, to + column);
    });
    if (leads(shape)) *at(lse, row, head) = total;
  });
}

template <int count, class A, class S, class O>
__global__ void __launch_bounds__(kThreads, 4)
    delta_rows(RowShape shape, Strided<const S> dout, Strided<const O> out, Strided<const A> dlse, Strided<A> delta) {
  for_each_row(shape, [&](int row, int head, bool active) {
    A product = 0;
    if (active) {
      for_each_column<count>(shape, [&](int column) {
        const auto x = load<count>(at(dout, row, head) + column);
        const auto y = load<count>(at(out, row, head) + column);
#pragma unroll
        for (int i = 0; i < count; ++i) product += static_cast<A>(x.value[i]) * static_cast<A>(y.value[i]);
      });
    }
    product = sum_over_lanes(product, shape.lanes);
    if (active && leads(shape)) *at(delta, row, head) = dlse.data == nullptr ? product : product - *at(dlse, row, head);
  });
}

/// A block a head. Each thread sums its rows, then the threads' sums are added in the shape of a tree: always in one order.
template <class A>
__global__ void __launch_bounds__(kThreads, 4)
    sink_gradient(int rows, Strided<const A> lse, Strided<const A> sink, Strided<const A> delta, Strided<A> dsink) {
  __shared__ double sums[kThreads];
  const int head = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const double logit = *at(sink, 0, head);
  double sum = 0;
  for (int row = thread; row < rows; row += kThreads) {
    const double total = *at(lse, row, head);
    if (total != kEmpty<double>) sum -= exp(logit - total) * static_cast<double>(*at(delta, row, head));
  }
  sums[thread] = sum;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (thread < half) sums[thread] += sums[thread + half];
    __syncthreads();
  }
  if (thread == 0) *at(dsink, 0, head) = static_cast<A>(sums[0]);
}

/// Elements an access: 16 bytes of the narrower type if every row allows it, else one.
template <int most>
int elements_at_once(std::int64_t width, std::initializer_list<ConstTensorView> views) {
  const bool wide = width % most == 0 && std::ranges::all_of(views, [](const ConstTensorView& view) {
                      return aligned(view, std::min<std::size_t>(16, most * size_of(view.dtype())));
                    });
  return wide ? most : 1;
}

/// launch(shape, blocks, element count as a constant): enough blocks to fill the device, lanes that fit the row.
template <int most, class Launch>
void launch_rows(const Extents& extents, std::initializer_list<ConstTensorView> views, const Launch& launch) {
  if (extents.product() == 0) return;
  const int count = elements_at_once<most>(extents[2], views);
  RowShape shape{static_cast<int>(extents[0]), static_cast<int>(extents[1]), static_cast<int>(extents[2]), 1};
  while (shape.lanes < 32 && shape.lanes * count < shape.width) shape.lanes *= 2;
  constexpr std::int64_t kMostBlocks = 2048;
  const std::int64_t per_block = kThreads / shape.lanes;
  const std::int64_t blocks = (extents[0] * extents[1] + per_block - 1) / per_block;
  const auto grid = static_cast<unsigned>(std::min(blocks, kMostBlocks));
  if (count == 1) {
    launch(shape, grid, std::integral_constant<int, 1>{});
  } else {
    launch(shape, grid, std::integral_constant<int, most>{});
  }
  periplus::cuda::check(cudaGetLastError(), "launch of a kernel on attention states");
}

template <class... Types>
constexpr int kElements = 16 / std::min({sizeof(Types)...});

}  // namespace

void merge(ConstTensorView part_out, ConstTensorView part_lse, const AttentionState& state, StreamView stream) {
  const cudaStream_t native = launch_stream(stream);
  visit_dtype<double, float>(state.out.dtype(), "merge", [&]<class A>() {
    launch_rows<kElements<A>>(state.out.shape(), {part_out, state.out},
                              [&]<int count>(const RowShape& shape, unsigned grid, std::integral_constant<int, count>) {
                                merge_rows<count, A><<<grid, kThreads, 0, native>>>(shape, strided<A>(part_out), strided<A>(part_lse),
                                                                                    strided<A>(state.out), strided<A>(state.lse));
                              });
  });
}

void finish(ConstTensorView state_out, ConstTensorView state_lse, ConstTensorView sink, TensorView out, TensorView lse, StreamView stream) {
  const cudaStream_t native = launch_stream(stream);
  visit_dtype<double, float, bfloat16, float16>(out.dtype(), "finish", [&]<class T>() {
    using S = DeviceValue<T>;
    using A = AccumulatorOf<T>;
    launch_rows<kElements<A, S>>(
        out.shape(), {state_out, out}, [&]<int count>(const RowShape& shape, unsigned grid, std::integral_constant<int, count>) {
          finish_rows<count, A, S><<<grid, kThreads, 0, native>>>(shape, strided<A>(state_out), strided<A>(state_lse), strided<A>(sink),
                                                                  strided<T>(out), strided<A>(lse));
        });
  });
}

void delta(ConstTensorView dout, ConstTensorView out, ConstTensorView lse, ConstTensorView dlse, ConstTensorView sink, TensorView delta,
           TensorView dsink, StreamView stream) {
  const cudaStream_t native = launch_stream(stream);
  visit_dtype<double, float, bfloat16, float16>(dout.dtype(), "delta", [&]<class T>() {
    using S = DeviceValue<T>;
    using A = AccumulatorOf<T>;
    const auto run = [&]<class U>() {
      using O = DeviceValue<U>;
      launch_rows<kElements<S, O>>(
          dout.shape(), {dout, out}, [&]<int count>(const RowShape& shape, unsigned grid, std::integral_constant<int, count>) {
            delta_rows<count, A, S, O>
                <<<grid, kThreads, 0, native>>>(shape, strided<T>(dout), strided<U>(out), strided<A>(dlse), strided<A>(delta));
          });
    };
    if constexpr (std::is_same_v<T, double>) {
      visit_dtype<double>(out.dtype(), "delta", run);
    } else {
      visit_dtype<float, bfloat16, float16>(out.dtype(), "delta", run);
    }
    if (dsink.dims() == 0) return;
    const auto heads = static_cast<unsigned>(dout.size(1));
    sink_gradient<A><<<heads, kThreads, 0, native>>>(static_cast<int>(dout.size(0)), strided<A>(lse), strided<A>(sink),
                                                     strided<A>(ConstTensorView(delta)), strided<A>(dsink));
    periplus::cuda::check(cudaGetLastError(), "launch of the sink gradient");
  });
}

}  // namespace periplus::kernels::cuda
