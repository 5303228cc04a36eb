// Operations per token and head (algorithms.md 5.10): a warp takes the channels of a head.
#include "kernels/cuda/activations.cuh"
#include "kernels/cuda/column_sums.cuh"
#include "kernels/cuda/heads.cuh"
#include "kernels/cuda/mixer.h"

namespace periplus::kernels::cuda {
namespace {

template <class T>
struct L2Norm {
  using A = AccumulatorOf<T>;
  std::int64_t width;
  A eps;
  Reads<T> x;
  Writes<T> y;
  __device__ void operator()(std::int64_t row, std::int64_t head, unsigned lane) const {
    const auto* from = at(x, row, head);
    auto* to = at(y, row, head);
    const A scale = 1 / sqrt(product<A>(from, from, width, lane) + eps);
    for_each_channel(width, lane, [&](std::int64_t i) { to[i] = static_cast<DeviceValue<T>>(static_cast<A>(from[i]) * scale); });
  }
};

template <class T>
struct L2NormBackward {
  using A = AccumulatorOf<T>;
  std::int64_t width;
  A eps;
  Reads<T> dy, x;
  Writes<T> dx;
  __device__ void operator()(std::int64_t row, std::int64_t head, unsigned lane) const {
    const auto *from = at(x, row, head), *d = at(dy, row, head);
    auto* to = at(dx, row, head);
    const A scale = 1 / sqrt(product<A>(from, from, width, lane) + eps);
    const A pull = scale * scale * scale * product<A>(from, d, width, lane);
    for_each_channel(width, lane, [&](std::int64_t i) {
      to[i] = static_cast<DeviceValue<T>>(scale * static_cast<A>(d[i]) - pull * static_cast<A>(from[i]));
    });
  }
};

template <class T>
struct Scale {
  using A = AccumulatorOf<T>;
  std::int64_t heads, width;
  Reads<T> x;
  const A* factor;
  Writes<T> y;
  __device__ void operator()(std::int64_t row, std::int64_t head, unsigned lane) const {
    const auto* from = at(x, row, head);
    auto* to = at(y, row, head);
    const A f = factor[row * heads + head];
    for_each_channel(width, lane, [&](std::int64_t i) { to[i] = static_cast<DeviceValue<T>>(f * static_cast<A>(from[i])); });
  }
};

template <class T>
struct ScaleBackward {
  using A = AccumulatorOf<T>;
  std::int64_t heads, width;
  Reads<T> dy, x;
  const A* factor;
  Writes<T> dx;
  A* dfactor;
  __device__ void operator()(std::int64_t row, std::int64_t head, unsigned lane) const {
    const auto *from = at(x, row, head), *d = at(dy, row, head);
    auto* to = at(dx, row, head);
    const A f = factor[row * heads + head], sum = product<A>(from, d, width, lane);
    if (lane == 0) dfactor[row * heads + head] = sum;
    for_each_channel(width, lane, [&](std::int64_t i) { to[i] = static_cast<DeviceValue<T>>(f * static_cast<A>(d[i])); });
  }
};

/// to += skip from; with `sums` [rows, heads] also the products of `from` and `other`.
template <class T>
struct AddScaled {
  using A = AccumulatorOf<T>;
  std::int64_t heads, width;
  Reads<T> from;
  const DeviceValue<T>* skip;
  Writes<T> to;
  Reads<T> other;
  A* sums;
  __device__ void operator()(std::int64_t row, std::int64_t head, unsigned lane) const {
    const auto* source = at(from, row, head);
    auto* target = at(to, row, head);
    if (sums != nullptr) {
      const A sum = product<A>(source, at(other, row, head), width, lane);
      if (lane == 0) sums[row * heads + head] = sum;
    }
    const A f = static_cast<A>(skip[head]);
    for_each_channel(width, lane, [&](std::int64_t i) {
      target[i] = static_cast<DeviceValue<T>>(static_cast<A>(target[i]) + f * static_cast<A>(source[i]));
    });
  }
};

/// For one head of y.
template <class T>
struct SumHeads {
  using A = AccumulatorOf<T>;
  std::int64_t heads, width;
  Reads<T> x;
  Writes<T> y;
  __device__ void operator()(std::int64_t row, std::int64_t, unsigned lane) const {
    auto* to = at(y, row, 0);
    for_each_channel(width, lane, [&](std::int64_t i) {
      A sum = 0;
      for (std::int64_t head = 0; head < heads; ++head) sum += static_cast<A>(at(x, row, head)[i]);
      to[i] = static_cast<DeviceValue<T>>(sum);
    });
  }
};

}  // namespace

void l2_norm(ConstTensorView x, double eps, TensorView y, StreamView stream) {
  const cudaStream_t native = launch_stream(stream);
  visit_dtype<bfloat16, float, double>(x.dtype(), "l2_norm", [&]<class T>() {
    launch_heads(x.size(0), x.size(1), L2Norm<T>{x.size(2), static_cast<AccumulatorOf<T>>(eps), strided<T>(x), strided<T>(y)}, native);
  });
}

void l2_norm_backward(ConstTensorView dy, ConstTensorView x, double eps, TensorView dx, StreamView stream) {
  const cudaStream_t native = launch_stream(stream);
  visit_dtype<bfloat16, float, double>(x.dtype(), "l2_norm_backward", [&]<class T>() {
    launch_heads(x.size(0), x.size(1),
                 L2NormBackward<T>{x.size(2), static_cast<AccumulatorOf<T>>(eps), strided<T>(dy), strided<T>(x), strided<T>(dx)}, native);
  });
}

void scale_heads(ConstTensorView x, ConstTensorView factor, TensorView y, StreamView stream) {
  const cudaStream_t native = launch_stream(stream);
  visit_dtype<bfloat16, float, double>(x.dtype(), "scale_heads", [&]<class T>() {
    launch_heads(x.size(0), x.size(1), Scale<T>{x.size(1), x.size(2), strided<T>(x), device_data<AccumulatorOf<T>>(factor), strided<T>(y)},
                 native);
  });
}

void scale_heads_backward(ConstTensorView dy, ConstTensorView x, ConstTensorView factor, TensorView dx, TensorView dfactor,
                          StreamView stream) {
  const cudaStream_t native = launch_stream(stream);
  visit_dtype<bfloat16, float, double>(x.dtype(), "scale_heads_backward", [&]<class T>() {
    using A = AccumulatorOf<T>;
    launch_heads(x.size(0), x.size(1),
                 ScaleBackward<T>{x.size(1), x.size(2), strided<T>(dy), strided<T>(x), device_data<A>(factor), strided<T>(dx),
                                  device_data<A>(dfactor)},
                 native);
  });
}

void add_skip(ConstTensorView x, ConstTensorView skip, TensorView y, StreamView stream) {
  const cudaStream_t native = launch_stream(stream);
  visit_dtype<bfloat16, float, double>(x.dtype(), "add_skip", [&]<class T>() {
    launch_heads(x.size(0), x.size(1), AddScaled<T>{x.size(1), x.size(2), strided<T>(x), device_data<T>(skip), strided<T>(y), {}, nullptr},
                 native);
  });
}

void add_skip_backward(ConstTensorView dy, ConstTensorView x, ConstTensorView skip, TensorView dx, TensorView dskip, StreamView stream) {
  const cudaStream_t native = launch_stream(stream);
  const std::int64_t rows = x.size(0), heads = x.size(1);
  visit_dtype<bfloat16, float, double>(x.dtype(), "add_skip_backward", [&]<class T>() {
    using A = AccumulatorOf<T>;
    const Scratch<A> sums(rows * heads, native);
    launch_heads(rows, heads,
                 AddScaled<T>{heads, x.size(2), strided<T>(dy), device_data<T>(skip), strided<T>(dx), strided<T>(x), sums.data()}, native);
    add_column_sums<A>(rows, heads, sums.data(), device_data<A>(dskip), native);
  });
}

void sum_heads(ConstTensorView x, TensorView y, StreamView stream) {
  const cudaStream_t native = launch_stream(stream);
  visit_dtype<bfloat16, float, double>(x.dtype(), "sum_heads", [&]<class T>() {
    launch_heads(x.size(0), 1, SumHeads<T>{x.size(1), x.size(2), strided<T>(x), strided<T>(y)}, native);
  });
}

}  // namespace periplus::kernels::cuda
