// SwiGLU: one pass over flat tensors.
#include "kernels/cuda/activations.cuh"
#include "kernels/cuda/transformer.h"

namespace periplus::kernels::cuda {
namespace {

template <class T>
struct Swiglu {
  using A = AccumulatorOf<T>;
  const T *gate, *up;
  T* h;

  template <int count>
  __device__ void apply(std::int64_t at) const {
    const auto gates = load<count>(gate + at), ups = load<count>(up + at);
    Several<T, count> result;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const A g = static_cast<A>(gates.value[i]);
      result.value[i] = static_cast<T>(g * sigmoid(g) * static_cast<A>(ups.value[i]));
    }
    store(result, h + at);
  }
};

/// Outputs may be the inputs: an access is read before it is written, by one thread.
template <class T>
struct SwigluBackward {
  using A = AccumulatorOf<T>;
  const T *dh, *gate, *up;
  T *dgate, *dup;

  template <int count>
  __device__ void apply(std::int64_t at) const {
    const auto gradients = load<count>(dh + at), gates = load<count>(gate + at), ups = load<count>(up + at);
    Several<T, count> of_gate, of_up;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const A g = static_cast<A>(gates.value[i]), d = static_cast<A>(gradients.value[i]), u = static_cast<A>(ups.value[i]);
      const A s = sigmoid(g);
      of_up.value[i] = static_cast<T>(d * g * s);
      of_gate.value[i] = static_cast<T>(d * u * s * (1 + g * (1 - s)));
    }
    store(of_up, dup + at);
    store(of_gate, dgate + at);
  }
};

}  // namespace

void swiglu(ConstTensorView gate, ConstTensorView up, TensorView h, StreamView stream) {
  const cudaStream_t native = launch_stream(stream);
  visit_dtype<bfloat16, float, double>(gate.dtype(), "swiglu", [&]<class T>() {
    const Swiglu<DeviceValue<T>> body{device_data<T>(gate), device_data<T>(up), device_data<T>(h)};
    launch_elements<kPerAccess<T>>(gate.elements(), starts_aligned(kPerAccess<T>, {gate, up, h}), body, native);
  });
}

void swiglu_backward(ConstTensorView dh, ConstTensorView gate, ConstTensorView up, TensorView dgate, TensorView dup, StreamView stream) {
  const cudaStream_t native = launch_stream(stream);
  visit_dtype<bfloat16, float, double>(gate.dtype(), "swiglu_backward", [&]<class T>() {
    const SwigluBackward<DeviceValue<T>> body{device_data<T>(dh), device_data<T>(gate), device_data<T>(up), device_data<T>(dgate),
                                              device_data<T>(dup)};
    launch_elements<kPerAccess<T>>(gate.elements(), starts_aligned(kPerAccess<T>, {dh, gate, up, dgate, dup}), body, native);
  });
}

}  // namespace periplus::kernels::cuda
