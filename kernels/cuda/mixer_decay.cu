// Decays and betas from projections (algorithms.md 5.10): passes over flat tensors, and sums over tokens per head.
#include "kernels/cuda/activations.cuh"
#include "kernels/cuda/column_sums.cuh"
#include "kernels/cuda/mixer.h"

namespace periplus::kernels::cuda {
namespace {

/// out = function(in).
template <class To, class From, class Function>
struct Map {
  const From* in;
  To* out;
  Function function;

  template <int count>
  __device__ void apply(std::int64_t at) const {
    const auto values = load<count>(in + at);
    Several<To, count> result;
#pragma unroll
    for (int i = 0; i < count; ++i) result.value[i] = static_cast<To>(function(static_cast<AccumulatorOf<From>>(values.value[i])));
    store(result, out + at);
  }
};

/// out = gradient * derivative(in). out may be in: an access is read before it is written, by one thread.
template <class T, class Derivative>
struct MapBackward {
  using A = AccumulatorOf<T>;
  const A* gradient;
  const T* in;
  T* out;
  Derivative derivative;

  template <int count>
  __device__ void apply(std::int64_t at) const {
    const auto gradients = load<count>(gradient + at);
    const auto values = load<count>(in + at);
    Several<T, count> result;
#pragma unroll
    for (int i = 0; i < count; ++i) result.value[i] = static_cast<T>(gradients.value[i] * derivative(static_cast<A>(values.value[i])));
    store(result, out + at);
  }
};

template <class A>
struct LogSigmoid {
  A factor;  ///< -1 / divisor
  __device__ A operator()(A x) const { return factor * softplus(-x); }
};
template <class A>
struct LogSigmoidDerivative {
  A factor;  ///< 1 / divisor
  __device__ A operator()(A x) const { return factor * sigmoid(-x); }
};
template <class A>
struct Beta {
  A ceiling;
  __device__ A operator()(A b) const { return ceiling * sigmoid(b); }
};
template <class A>
struct BetaDerivative {
  A ceiling;
  __device__ A operator()(A b) const {
    const A s = sigmoid(b);
    return ceiling * s * (1 - s);
  }
};

template <template <class> class Function>
void map(std::string_view op, double parameter, const ConstTensorView& in, const TensorView& out, StreamView stream) {
  const cudaStream_t native = launch_stream(stream);
  visit_dtype<bfloat16, float, double>(in.dtype(), op, [&]<class T>() {
    using A = AccumulatorOf<T>;
    const Map<A, DeviceValue<T>, Function<A>> body{device_data<T>(in), device_data<A>(out), {static_cast<A>(parameter)}};
    launch_elements<kPerAccess<A>>(in.elements(), starts_aligned(kPerAccess<A>, {in, out}), body, native);
  });
}

template <template <class> class Derivative>
void map_backward(std::string_view op, double parameter, const ConstTensorView& gradient, const ConstTensorView& in, const TensorView& out,
                  StreamView stream) {
  const cudaStream_t native = launch_stream(stream);
  visit_dtype<bfloat16, float, double>(in.dtype(), op, [&]<class T>() {
    using A = AccumulatorOf<T>;
    const MapBackward<DeviceValue<T>, Derivative<A>> body{
        device_data<A>(gradient), device_data<T>(in), device_data<T>(out), {static_cast<A>(parameter)}};
    launch_elements<kPerAccess<A>>(in.elements(), starts_aligned(kPerAccess<A>, {gradient, in, out}), body, native);
  });
}

/// Element i is of head i mod heads.
template <class T>
struct SoftplusOperands {
  using A = AccumulatorOf<T>;
  std::int64_t heads;
  const T *a, *a_log, *dt_bias;

  __device__ A before_softplus(std::int64_t i) const { return static_cast<A>(a[i]) + static_cast<A>(dt_bias[i % heads]); }
  __device__ A rate(std::int64_t i) const { return -exp(static_cast<A>(a_log[i % heads])); }
};

template <class T>
struct Softplus {
  using A = AccumulatorOf<T>;
  SoftplusOperands<T> of;
  A *log_decay, *step;

  template <int count>
  __device__ void apply(std::int64_t at) const {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const A value = softplus(of.before_softplus(at + i));
      step[at + i] = value;
      log_decay[at + i] = of.rate(at + i) * value;
    }
  }
};

/// da may be a. The terms of the sums over tokens that are the gradients of dt_bias and a_log.
template <class T>
struct SoftplusBackward {
  using A = AccumulatorOf<T>;
  SoftplusOperands<T> of;
  const A *dlog_decay, *dstep;  ///< dstep may be null.
  T* da;
  A *of_bias, *of_a_log;

  template <int count>
  __device__ void apply(std::int64_t at) const {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const A before = of.before_softplus(at + i), rate = of.rate(at + i), decay = dlog_decay[at + i];
      const A gradient = ((dstep != nullptr ? dstep[at + i] : A{0}) + rate * decay) * sigmoid(before);
      of_bias[at + i] = gradient;
      of_a_log[at + i] = rate * softplus(before) * decay;
      da[at + i] = static_cast<T>(gradient);
    }
  }
};

template <class T>
SoftplusOperands<DeviceValue<T>> operands_of(const SoftplusDecay& inputs) {
  return {inputs.a.size(1), device_data<T>(inputs.a), device_data<T>(inputs.a_log), device_data<T>(inputs.dt_bias)};
}

}  // namespace

void logsigmoid_decay(ConstTensorView x, double divisor, TensorView log_decay, StreamView stream) {
  map<LogSigmoid>("logsigmoid_decay", -1 / divisor, x, log_decay, stream);
}
void logsigmoid_decay_backward(ConstTensorView dlog_decay, ConstTensorView x, double divisor, TensorView dx, StreamView stream) {
  map_backward<LogSigmoidDerivative>("logsigmoid_decay_backward", 1 / divisor, dlog_decay, x, dx, stream);
}
void sigmoid_beta(ConstTensorView b, double ceiling, TensorView beta, StreamView stream) {
  map<Beta>("sigmoid_beta", ceiling, b, beta, stream);
}
void sigmoid_beta_backward(ConstTensorView dbeta, ConstTensorView b, double ceiling, TensorView db, StreamView stream) {
  map_backward<BetaDerivative>("sigmoid_beta_backward", ceiling, dbeta, b, db, stream);
}

void softplus_decay(const SoftplusDecay& inputs, TensorView log_decay, TensorView step, StreamView stream) {
  const cudaStream_t native = launch_stream(stream);
  visit_dtype<bfloat16, float, double>(inputs.a.dtype(), "softplus_decay", [&]<class T>() {
    using A = AccumulatorOf<T>;
    const Softplus<DeviceValue<T>> body{operands_of<T>(inputs), device_data<A>(log_decay), device_data<A>(step)};
    launch_elements<1>(inputs.a.elements(), false, body, native);
  });
}

void softplus_decay_backward(const SoftplusDecay& inputs, ConstTensorView dlog_decay, ConstTensorView dstep, TensorView da,
                             TensorView da_log, TensorView ddt_bias, StreamView stream) {
  const cudaStream_t native = launch_stream(stream);
  const std::int64_t rows = inputs.a.size(0), heads = inputs.a.size(1);
  visit_dtype<bfloat16, float, double>(inputs.a.dtype(), "softplus_decay_backward", [&]<class T>() {
    using A = AccumulatorOf<T>;
    const Scratch<A> of_bias(rows * heads, native), of_a_log(rows * heads, native);
    const SoftplusBackward<DeviceValue<T>> body{operands_of<T>(inputs),
                                                device_data<A>(dlog_decay),
                                                dstep.dims() != 0 ? device_data<A>(dstep) : nullptr,
                                                device_data<T>(da),
                                                of_bias.data(),
                                                of_a_log.data()};
    launch_elements<1>(rows * heads, false, body, native);
    add_column_sums<A>(rows, heads, of_bias.data(), device_data<A>(ddt_bias), native);
    add_column_sums<A>(rows, heads, of_a_log.data(), device_data<A>(da_log), native);
  });
}

}  // namespace periplus::kernels::cuda
