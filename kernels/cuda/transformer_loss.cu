// Output projection, softmax and loss over row tiles (algorithms.md 10.4): cuBLASLt for the products, a block a row between.
#include <limits>

#include "kernels/cuda/transformer.cuh"
#include "kernels/cuda/transformer.h"
#include "kernels/matmul.h"
#include "runtime/error.h"

namespace periplus::kernels::cuda {
namespace {

constexpr int kThreads = 512;

/// Largest logit and the sum of exp(logit - largest), of a thread's columns, in one pass.
template <class A>
struct Softmax {
  // Finite, so that logits of minus infinity add exp(-inf) = 0 and not NaN.
  A largest = std::numeric_limits<A>::lowest(), sum = 0;

  template <int count>
  __device__ void add(const Several<A, count>& logits) {
    A top = largest;
#pragma unroll
    for (int i = 0; i < count; ++i) top = fmax(top, logits.value[i]);
    if (top > largest) {
      sum *= exp(largest - top);
      largest = top;
    }
#pragma unroll
    for (int i = 0; i < count; ++i) sum += exp(logits.value[i] - largest);
  }
  /// Of the whole block.
  __device__ Softmax over_row() const {
    Softmax row;
    row.largest = over_block(largest, Largest{});
    row.sum = over_block(sum * exp(largest - row.largest), Sum{});
    return row;
  }
};

/// losses[row], and unless `dz` is null the scaled gradient of the row's logits. dz may be the logits: before the block's
/// sums every thread reads, then a thread writes the columns that it alone reads again.
template <int count, class T, class A>
__global__ void __launch_bounds__(kThreads)
    softmax_rows(std::int64_t vocabulary, const A* logits, const std::int32_t* labels, A scale, double* losses, T* dz) {
  const std::int64_t row = blockIdx.x;
  const A* const z = logits + row * vocabulary;
  T* const gradient = dz == nullptr ? nullptr : dz + row * vocabulary;
  const std::int32_t label = labels[row];
  if (label == kIgnoreLabel) {
    if (threadIdx.x == 0) losses[row] = 0;
    if (gradient == nullptr) return;
    for_each_column<count>(vocabulary, [&](std::int64_t column) {
      Several<T, count> zeros;
#pragma unroll
      for (int i = 0; i < count; ++i) zeros.value[i] = static_cast<T>(A{0});
      store(zeros, gradient + column);
    });
    return;
  }
  const A at_label = z[label];
  Softmax<A> own;
  for_each_column<count>(vocabulary, [&](std::int64_t column) { own.add(load<count>(z + column)); });
  const Softmax<A> all = own.over_row();
  if (threadIdx.x == 0)
    losses[row] = log(static_cast<double>(all.sum)) - (static_cast<double>(at_label) - static_cast<double>(all.largest));
  if (gradient == nullptr) return;
  const A factor = scale / all.sum;
  for_each_column<count>(vocabulary, [&](std::int64_t column) {
    const auto values = load<count>(z + column);
    Several<T, count> result;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const A share = exp(values.value[i] - all.largest) * factor;
      result.value[i] = static_cast<T>(column + i == label ? share - scale : share);
    }
    store(result, gradient + column);
  });
}

/// Logits are dense. With an empty `dz` only the losses.
template <class T>
void softmax(const TensorView& logits, const std::int32_t* labels, double scale, double* losses, const TensorView& dz,
             cudaStream_t stream) {
  using A = AccumulatorOf<T>;
  const std::int64_t rows = logits.size(0), vocabulary = logits.size(1);
  DeviceValue<T>* const gradient = dz.dims() == 0 ? nullptr : device_data<T>(dz);
  const bool wide = vocabulary % kPerAccess<A> == 0 && starts_aligned(kPerAccess<A>, {logits, dz});
  with_access<kPerAccess<A>>(wide, [&]<int count>(std::integral_constant<int, count>) {
    launch("launch of cross_entropy", softmax_rows<count, DeviceValue<T>, A>, static_cast<unsigned>(rows), row_threads(vocabulary, count),
           0, stream, vocabulary, device_data<A>(logits), labels, static_cast<A>(scale), losses, gradient);
  });
}

template <class T>
double loss_of(const ConstTensorView& x, const ConstTensorView& weight, std::span<const std::int32_t> labels,
               const CrossEntropyOptions& options, const TensorView& dx, const TensorView& dweight, const Memory& memory,
               StreamView stream) {
  using A = AccumulatorOf<T>;
  const std::int64_t rows = x.size(0), vocabulary = weight.size(0);
  const std::int64_t tile = std::min({options.tile_rows, rows, std::int64_t{std::numeric_limits<std::int32_t>::max()}});
  const bool backward = dx.dims() != 0;
  constexpr bool kInPlace = std::is_same_v<T, A>;
  const cudaStream_t native = launch_stream(stream);
  const Tensor logits({tile, vocabulary}, dtype_of<A>, memory);
  const Tensor separate = backward && !kInPlace ? Tensor({tile, vocabulary}, x.dtype(), memory) : Tensor();
  const Scratch<std::int32_t> row_labels(labels, native);
  const Scratch<double> losses(rows, native);
  for (std::int64_t first = 0; first < rows; first += tile) {
    const std::int64_t count = std::min(tile, rows - first);
    const ConstTensorView x_tile = x.slice(0, first, count);
    const TensorView z = logits.view().slice(0, 0, count);
    const TensorView dz = !backward ? TensorView() : kInPlace ? z : separate.view().slice(0, 0, count);
    matmul(x_tile, weight, z, {.transpose_b = true}, stream);
    softmax<T>(z, row_labels.data() + first, options.gradient_scale, losses.data() + first, dz, native);
    if (!backward) continue;
    matmul(dz, weight, dx.slice(0, first, count), {}, stream);
    matmul(dz, x_tile, dweight, {.transpose_a = true, .update = Update::accumulate}, stream);
  }
  return sum_on_host<double>(rows, losses.data(), native);
}

}  // namespace

CrossEntropyResult cross_entropy(ConstTensorView x, ConstTensorView weight, std::span<const std::int32_t> labels,
                                 const CrossEntropyOptions& options, TensorView dx, TensorView dweight, const Memory& memory,
                                 StreamView stream) {
  if (!(memory.device() == stream.device())) {
    throw InvalidArgument("cross_entropy: memory is of " + to_string(memory.device()) + " but the stream is on " +
                          to_string(stream.device()) + "; give the memory of the stream's device");
  }
  CrossEntropyResult result;
  result.valid_labels = static_cast<std::int64_t>(labels.size()) - std::ranges::count(labels, kIgnoreLabel);
  visit_dtype<bfloat16, float, double>(x.dtype(), "cross_entropy", [&]<class T>() {
    result.loss_sum = loss_of<T>(x, weight, labels, options, dx, dweight, memory, stream);
  });
  return result;
}

}  // namespace periplus::kernels::cuda
