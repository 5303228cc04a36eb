// Root mean square normalisation: a block takes a row twice, the second time from the cache.
#include "kernels/cuda/column_sums.cuh"
#include "kernels/cuda/transformer.cuh"
#include "kernels/cuda/transformer.h"

namespace periplus::kernels::cuda {
namespace {

constexpr int kThreads = 512;

/// y may be x: a thread writes the columns that it alone has read.
template <int count, class T, class A>
__global__ void __launch_bounds__(kThreads)
    rms_norm_rows(std::int64_t rows, std::int64_t channels, const T* x, const T* gamma, A eps, T* y, A* rstd) {
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* const from = x + row * channels;
    A squares = 0;
    for_each_column<count>(channels, [&](std::int64_t column) {
      const auto values = load<count>(from + column);
#pragma unroll
      for (int i = 0; i < count; ++i) squares += static_cast<A>(values.value[i]) * static_cast<A>(values.value[i]);
    });
    const A scale = 1 / sqrt(over_block(squares, Sum{}) / static_cast<A>(channels) + eps);
    for_each_column<count>(channels, [&](std::int64_t column) {
      auto values = load<count>(from + column);
      const auto weights = load<count>(gamma + column);
#pragma unroll
      for (int i = 0; i < count; ++i) {
        values.value[i] = static_cast<T>(static_cast<A>(values.value[i]) * scale * static_cast<A>(weights.value[i]));
      }
      store(values, y + row * channels + column);
    });
    if (threadIdx.x == 0) rstd[row] = scale;
  }
}

template <class T, class A>
struct Backward {
  std::int64_t rows, channels, rows_per_block;
  const T *dy, *x, *gamma;
  const A* rstd;
  T* dx;
  A* partial;  ///< [blocks, channels]: dgamma over the rows of a block.
  bool accumulate, sums_in_shared;
};

/// dx = rstd t - rstd^3 x mean(t x) with t = dy gamma; dgamma += dy x rstd. A block has consecutive rows, and a thread the
/// same columns of all of them, so that sums over rows need no exchange.
template <int count, class T, class A>
__global__ void __launch_bounds__(kThreads) rms_norm_backward_rows(const Backward<T, A> b) {
  extern __shared__ __align__(16) unsigned char shared_sums[];
  A* const own = b.partial + blockIdx.x * b.channels;
  A* const sums = b.sums_in_shared ? reinterpret_cast<A*>(shared_sums) : own;
  for_each_column<count>(b.channels, [&](std::int64_t column) { store(Several<A, count>{}, sums + column); });
  const std::int64_t first = blockIdx.x * b.rows_per_block;
  for (std::int64_t row = first; row < min(first + b.rows_per_block, b.rows); ++row) {
    const std::int64_t start = row * b.channels;
    A dot = 0;
    for_each_column<count>(b.channels, [&](std::int64_t column) {
      const auto dy = load<count>(b.dy + start + column), x = load<count>(b.x + start + column), gamma = load<count>(b.gamma + column);
#pragma unroll
      for (int i = 0; i < count; ++i) dot += static_cast<A>(dy.value[i]) * static_cast<A>(gamma.value[i]) * static_cast<A>(x.value[i]);
    });
    const A scale = b.rstd[row];
    const A pull = scale * scale * scale * over_block(dot, Sum{}) / static_cast<A>(b.channels);
    for_each_column<count>(b.channels, [&](std::int64_t column) {
      const auto dy = load<count>(b.dy + start + column), x = load<count>(b.x + start + column), gamma = load<count>(b.gamma + column);
      auto sum = load<count>(sums + column);
      Several<T, count> old{}, result;
      if (b.accumulate) old = load<count>(b.dx + start + column);
#pragma unroll
      for (int i = 0; i < count; ++i) {
        const A gradient = static_cast<A>(dy.value[i]), value = static_cast<A>(x.value[i]);
        sum.value[i] += gradient * value * scale;
        const A change = scale * gradient * static_cast<A>(gamma.value[i]) - pull * value;
        result.value[i] = static_cast<T>(b.accumulate ? static_cast<A>(old.value[i]) + change : change);
      }
      store(sum, sums + column);
      store(result, b.dx + start + column);
    });
  }
  if (b.sums_in_shared) for_each_column<count>(b.channels, [&](std::int64_t column) { store(load<count>(sums + column), own + column); });
}

template <class T>
void backward_of(const ConstTensorView& dy, const ConstTensorView& x, const ConstTensorView& gamma, const ConstTensorView& rstd,
                 const TensorView& dx, bool accumulate, const TensorView& dgamma, cudaStream_t stream) {
  using A = AccumulatorOf<T>;
  constexpr std::int64_t kMostBlocks = 512;       // about what runs at a time; more would only lengthen the sum over blocks
  constexpr std::size_t kMostShared = 40 * 1024;  // what every device gives without being asked, and four blocks fit
  const std::int64_t rows = x.size(0), channels = x.size(1);
  const std::int64_t per_block = (rows + kMostBlocks - 1) / kMostBlocks, blocks = (rows + per_block - 1) / per_block;
  const std::size_t sum_bytes = static_cast<std::size_t>(channels) * sizeof(A);
  const bool in_shared = sum_bytes <= kMostShared;
  const Scratch<A> partial(blocks * channels, stream);
  const Backward<DeviceValue<T>, A> b{rows,
                                      channels,
                                      per_block,
                                      device_data<T>(dy),
                                      device_data<T>(x),
                                      device_data<T>(gamma),
                                      device_data<A>(rstd),
                                      device_data<T>(dx),
                                      partial.data(),
                                      accumulate,
                                      in_shared};
  const bool wide = channels % kPerAccess<T> == 0 && starts_aligned(kPerAccess<T>, {dy, x, gamma, dx});
  with_access<kPerAccess<T>>(wide, [&]<int count>(std::integral_constant<int, count>) {
    launch("launch of rms_norm_backward", rms_norm_backward_rows<count, DeviceValue<T>, A>, static_cast<unsigned>(blocks),
           row_threads(channels, count), in_shared ? sum_bytes : 0, stream, b);
  });
  add_column_sums<A>(blocks, channels, partial.data(), device_data<A>(dgamma), stream);
}

}  // namespace

void rms_norm(ConstTensorView x, ConstTensorView gamma, double eps, TensorView y, TensorView rstd, StreamView stream) {
  const std::int64_t rows = x.size(0), channels = x.size(1);
  if (rows == 0) return;
  const cudaStream_t native = launch_stream(stream);
  visit_dtype<bfloat16, float, double>(x.dtype(), "rms_norm", [&]<class T>() {
    using A = AccumulatorOf<T>;
    const bool wide = channels % kPerAccess<T> == 0 && starts_aligned(kPerAccess<T>, {x, gamma, y});
    with_access<kPerAccess<T>>(wide, [&]<int count>(std::integral_constant<int, count>) {
      launch("launch of rms_norm", rms_norm_rows<count, DeviceValue<T>, A>, blocks_for(rows), row_threads(channels, count), 0, native, rows,
             channels, device_data<T>(x), device_data<T>(gamma), static_cast<A>(eps), device_data<T>(y), device_data<A>(rstd));
    });
  });
}

void rms_norm_backward(ConstTensorView dy, ConstTensorView x, ConstTensorView gamma, ConstTensorView rstd, TensorView dx, Update update_dx,
                       TensorView dgamma, StreamView stream) {
  if (x.elements() == 0) return;
  const cudaStream_t native = launch_stream(stream);
  visit_dtype<bfloat16, float, double>(x.dtype(), "rms_norm_backward", [&]<class T>() {
    backward_of<T>(dy, x, gamma, rstd, dx, update_dx == Update::accumulate, dgamma, native);
  });
}

}  // namespace periplus::kernels::cuda
