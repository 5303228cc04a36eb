// The optimizer step and the norm of the gradient: one pass over flat shards.
#include "kernels/cuda/transformer.cuh"
#include "kernels/cuda/transformer.h"
#include "kernels/transformer/adamw_coefficients.h"

namespace periplus::kernels::cuda {
namespace {

template <class A, class T>
struct Adamw {
  AdamwCoefficients<A> with;
  A *master, *m, *v;
  const A* gradient;
  T* working;

  template <int count>
  __device__ void apply(std::int64_t at) const {
    auto weights = load<count>(master + at), means = load<count>(m + at), squares = load<count>(v + at);
    const auto gradients = load<count>(gradient + at);
    Several<T, count> result;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const A g = gradients.value[i] * with.gradient_scale, weight = weights.value[i];
      const A mean = with.beta1 * means.value[i] + (1 - with.beta1) * g;
      const A square = with.beta2 * squares.value[i] + (1 - with.beta2) * g * g;
      const A value = weight - with.decay * weight - with.step_size * mean / (sqrt(square * with.inverse_correction2) + with.epsilon);
      means.value[i] = mean;
      squares.value[i] = square;
      weights.value[i] = value;
      result.value[i] = static_cast<T>(value);
    }
    store(means, m + at);
    store(squares, v + at);
    store(weights, master + at);
    store(result, working + at);
  }
};

constexpr int kThreads = 256;

/// A block's sum of squares. A thread takes runs of kPerAccess elements whether or not one access can read them: the order
/// depends on the length alone.
template <bool wide, class T>
__global__ void __launch_bounds__(kThreads) squares_of_blocks(std::int64_t elements, const T* x, double* partial) {
  constexpr int count = kPerAccess<T>;
  const std::int64_t thread = std::int64_t{blockIdx.x} * kThreads + threadIdx.x, step = std::int64_t{gridDim.x} * kThreads;
  const std::int64_t whole = elements / count * count;
  double sum = 0;
  const auto add = [&](T element) {
    sum += static_cast<double>(static_cast<AccumulatorOf<T>>(element)) * static_cast<AccumulatorOf<T>>(element);
  };
  for (std::int64_t at = thread * count; at < whole; at += step * count) {
    Several<T, count> run;
    if constexpr (wide) {
      run = load<count>(x + at);
    } else {
#pragma unroll
      for (int i = 0; i < count; ++i) run.value[i] = x[at + i];
    }
#pragma unroll
    for (int i = 0; i < count; ++i) add(run.value[i]);
  }
  if (whole + thread < elements) add(x[whole + thread]);
  sum = over_block(sum, Sum{});
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

}  // namespace

void adamw(TensorView master, TensorView m, TensorView v, ConstTensorView gradient, TensorView working, const AdamwOptions& options,
           StreamView stream) {
  const cudaStream_t native = launch_stream(stream);
  visit_dtype<bfloat16, float, double>(working.dtype(), "adamw", [&]<class T>() {
    using A = AccumulatorOf<T>;
    const Adamw<A, DeviceValue<T>> body{adamw_coefficients<A>(options), device_data<A>(master), device_data<A>(m), device_data<A>(v),
                                        device_data<A>(gradient),       device_data<T>(working)};
    launch_elements<kPerAccess<A>>(master.elements(), starts_aligned(kPerAccess<A>, {master, m, v, gradient, working}), body, native);
  });
}

double sum_of_squares(ConstTensorView x, StreamView stream) {
  const std::int64_t elements = x.elements();
  if (elements == 0) return 0;
  const cudaStream_t native = launch_stream(stream);
  double result = 0;
  visit_dtype<bfloat16, float, double>(x.dtype(), "sum_of_squares", [&]<class T>() {
    constexpr std::int64_t kPerBlock = std::int64_t{kThreads} * kPerAccess<T> * 4, kMostBlocks = 1024;
    const std::int64_t blocks = std::min((elements + kPerBlock - 1) / kPerBlock, kMostBlocks);
    const Scratch<double> partial(blocks, native);
    const auto kernel =
        starts_aligned(kPerAccess<T>, {x}) ? squares_of_blocks<true, DeviceValue<T>> : squares_of_blocks<false, DeviceValue<T>>;
    launch("launch of sum_of_squares", kernel, static_cast<unsigned>(blocks), kThreads, 0, native, elements, device_data<T>(x),
           partial.data());
    result = sum_on_host<double>(blocks, partial.data(), native);
  });
  return result;
}

}  // namespace periplus::kernels::cuda
