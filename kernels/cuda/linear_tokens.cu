// What stands around the recurrence of linear attention: a warp has a token of a head.
#include "kernels/cuda/heads.cuh"
#include "kernels/cuda/linear_tokens.h"
#include "kernels/cuda/resident.h"

namespace periplus::kernels::cuda {
namespace {

struct Runs {
  const UnitRun* all;
  std::int64_t count;

  /// Of the row, or null.
  __device__ const UnitRun* find(std::int64_t row) const {
    std::int64_t first = 0, end = count;  // of runs, the last that begins at or before the row is among them
    while (end - first > 1) {
      const std::int64_t middle = (first + end) / 2;
      (all[middle].row0 <= row ? first : end) = middle;
    }
    const bool inside = count > 0 && row >= all[first].row0 && row < all[first].row0 + all[first].rows;
    return inside ? all + first : nullptr;
  }
};

/// to += scale (from - weight less)
template <class A, class T>
__device__ __forceinline__ void add_difference(A scale, const T* from, A weight, const T* less, T* to, std::int64_t width, unsigned lane) {
  for_each_channel(width, lane, [&](std::int64_t i) {
    to[i] = static_cast<T>(static_cast<A>(to[i]) + scale * (static_cast<A>(from[i]) - weight * static_cast<A>(less[i])));
  });
}

template <class A>
struct MirrorDecay {
  Runs runs;
  std::int64_t width;
  Strided<const A> log_decay;
  Strided<A> mirrored;
  __device__ void operator()(std::int64_t row, std::int64_t head, unsigned lane) const {
    const UnitRun* const run = runs.find(row);
    if (run == nullptr) return;
    const bool last = row + 1 == run->row0 + run->rows;
    for_each_channel(width, lane, [&](std::int64_t i) { at(mirrored, row, head)[i] = last ? A{0} : at(log_decay, row + 1, head)[i]; });
  }
};

/// The "row" is a run.
template <class A>
struct DecayStates {
  Runs runs;
  std::int64_t width, numbers;
  Strided<const A> log_decay;
  Strided<A> states;
  __device__ void operator()(std::int64_t item, std::int64_t head, unsigned lane) const {
    const UnitRun& run = runs.all[item];
    if (!run.enters) return;
    const A* const decay = at(log_decay, run.row0, head);
    for_each_channel(numbers, lane, [&](std::int64_t i) { at(states, run.unit, head)[i] *= exp(decay[i / (numbers / width)]); });
  }
};

template <class T>
struct AddMirrored {
  using A = AccumulatorOf<T>;
  std::int64_t d, e;
  A scale;
  Reads<T> q, k, v, mirrored;
  Writes<T> out;
  __device__ void operator()(std::int64_t row, std::int64_t head, unsigned lane) const {
    const A self = product<A>(at(q, row, head), at(k, row, head), d, lane);
    add_difference(scale, at(mirrored, row, head), self, at(v, row, head), at(out, row, head), e, lane);
  }
};

template <class T>
struct AddMirroredBackward {
  using A = AccumulatorOf<T>;
  std::int64_t d, e;
  A scale;
  Reads<T> q, k, v, dout, from_q, from_k, from_v;
  Writes<T> to_q, to_k, to_v;
  __device__ void operator()(std::int64_t row, std::int64_t head, unsigned lane) const {
    const A self = product<A>(at(q, row, head), at(k, row, head), d, lane);
    const A dself = product<A>(at(dout, row, head), at(v, row, head), e, lane);
    add_difference(scale, at(from_q, row, head), dself, at(k, row, head), at(to_q, row, head), d, lane);
    add_difference(scale, at(from_k, row, head), dself, at(q, row, head), at(to_k, row, head), d, lane);
    add_difference(scale, at(from_v, row, head), self, at(dout, row, head), at(to_v, row, head), e, lane);
  }
};

/// Row r of `from` has the gradient of the decay behind it.
template <class T>
struct AddDecayGradients {
  using A = AccumulatorOf<T>;
  Runs runs;
  std::int64_t d, width;
  A scale;
  Reads<T> q, k, dq, dk;
  Strided<const A> from;
  Strided<A> to;
  __device__ A sent(std::int64_t row, std::int64_t head, std::int64_t i) const {
    return static_cast<A>(at(q, row, head)[i]) * static_cast<A>(at(dq, row, head)[i]) -
           static_cast<A>(at(k, row, head)[i]) * static_cast<A>(at(dk, row, head)[i]);
  }
  __device__ void operator()(std::int64_t row, std::int64_t head, unsigned lane) const {
    const UnitRun* const run = runs.find(row);
    if (run == nullptr) return;
    A* const sum = at(to, row, head);
    const bool first = row == run->row0;
    if (first && !run->enters) return;
    A all = 0;
    if (first && width == 1) {
      for_each_channel(d, lane, [&](std::int64_t i) { all += sent(row, head, i); });
      all = sum_over_lanes(all);
    }
    const A* const behind = at(from, first ? row : row - 1, head);
    for_each_channel(width, lane, [&](std::int64_t i) {
      const A less = !first ? A{0} : width == 1 ? all : sent(row, head, i);
      sum[i] += scale * (behind[i] - less);
    });
  }
};

template <class T>
struct ExtendValues {
  std::int64_t width;
  Reads<T> values;
  Writes<T> extended;
  __device__ void operator()(std::int64_t row, std::int64_t head, unsigned lane) const {
    const auto* const from = at(values, row, head);
    for_each_channel(width + 1, lane, [&](std::int64_t i) {
      at(extended, row, head)[i] = i < width ? from[i] : static_cast<DeviceValue<T>>(AccumulatorOf<T>{1});
    });
  }
};

template <class T>
struct Normalise {
  using A = AccumulatorOf<T>;
  std::int64_t width;
  A least;
  Reads<T> extended;
  Writes<T> out;
  Strided<A> normaliser;
  __device__ void operator()(std::int64_t row, std::int64_t head, unsigned lane) const {
    const auto* const numbers = at(extended, row, head);
    const A z = static_cast<A>(numbers[width]) + least;
    if (lane == 0) *at(normaliser, row, head) = z;
    for_each_channel(width, lane,
                     [&](std::int64_t i) { at(out, row, head)[i] = static_cast<DeviceValue<T>>(static_cast<A>(numbers[i]) / z); });
  }
};

template <class T>
struct NormaliseBackward {
  using A = AccumulatorOf<T>;
  std::int64_t width;
  Reads<T> dout, out;
  Strided<const A> normaliser;
  Writes<T> dextended;
  __device__ void operator()(std::int64_t row, std::int64_t head, unsigned lane) const {
    const A z = *at(normaliser, row, head);
    const auto* const d = at(dout, row, head);
    auto* const to = at(dextended, row, head);
    const A sum = product<A>(d, at(out, row, head), width, lane);
    for_each_channel(width, lane, [&](std::int64_t i) { to[i] = static_cast<DeviceValue<T>>(static_cast<A>(d[i]) / z); });
    if (lane == 0) to[width] = static_cast<DeviceValue<T>>(-sum / z);
  }
};

template <class Body>
void visit(DType dtype, std::string_view op, const Body& body) {
  visit_dtype<double, float, bfloat16, float16>(dtype, op, body);
}

}  // namespace

void mirror_decay(ConstTensorView log_decay, std::span<const UnitRun> runs, TensorView mirrored, StreamView stream) {
  const cudaStream_t native = launch_stream(stream);
  visit_dtype<float, double>(log_decay.dtype(), "mirror_decay", [&]<class A>() {
    const auto table = resident(runs, stream);
    launch_heads(log_decay.size(0), log_decay.size(1),
                 MirrorDecay<A>{{table.get(), std::ssize(runs)}, log_decay.size(2), strided<A>(log_decay), strided<A>(mirrored)}, native);
  });
}

void decay_states(ConstTensorView log_decay, std::span<const UnitRun> runs, TensorView states, StreamView stream) {
  const cudaStream_t native = launch_stream(stream);
  visit_dtype<float, double>(log_decay.dtype(), "decay_states", [&]<class A>() {
    const auto table = resident(runs, stream);
    launch_heads(
        std::ssize(runs), log_decay.size(1),
        DecayStates<A>{{table.get(), std::ssize(runs)}, log_decay.size(2), states.size(2), strided<A>(log_decay), strided<A>(states)},
        native);
  });
}

void add_mirrored(const LinearBlock& block, ConstTensorView mirrored, TensorView out, StreamView stream) {
  const cudaStream_t native = launch_stream(stream);
  visit(out.dtype(), "add_mirrored", [&]<class T>() {
    launch_heads(out.size(0), out.size(1),
                 AddMirrored<T>{block.q.size(2), out.size(2), static_cast<AccumulatorOf<T>>(block.scale), strided<T>(block.q),
                                strided<T>(block.k), strided<T>(block.v), strided<T>(mirrored), strided<T>(out)},
                 native);
  });
}

void add_mirrored_backward(const LinearBlock& block, ConstTensorView dout, const LinearGradients& mirrored,
                           const LinearGradients& gradients, StreamView stream) {
  const cudaStream_t native = launch_stream(stream);
  const std::int64_t rows = dout.size(0), heads = dout.size(1), d = block.q.size(2);
  visit(dout.dtype(), "add_mirrored_backward", [&]<class T>() {
    using A = AccumulatorOf<T>;
    const A scale = static_cast<A>(block.scale);
    const Reads<T> q = strided<T>(block.q), k = strided<T>(block.k);
    const Reads<T> dq = strided<T>(ConstTensorView(mirrored.dq)), dk = strided<T>(ConstTensorView(mirrored.dk));
    launch_heads(rows, heads,
                 AddMirroredBackward<T>{d, dout.size(2), scale, q, k, strided<T>(block.v), strided<T>(dout), dq, dk,
                                        strided<T>(ConstTensorView(mirrored.dv)), strided<T>(gradients.dq), strided<T>(gradients.dk),
                                        strided<T>(gradients.dv)},
                 native);
    if (gradients.dlog_decay.dims() == 0) return;
    const auto table = resident(block.runs, stream);
    const Runs runs{table.get(), std::ssize(block.runs)};
    launch_heads(rows, heads,
                 AddDecayGradients<T>{runs, d, gradients.dlog_decay.size(2), scale, q, k, dq, dk,
                                      strided<A>(ConstTensorView(mirrored.dlog_decay)), strided<A>(gradients.dlog_decay)},
                 native);
  });
}

void extend_values(ConstTensorView values, TensorView extended, StreamView stream) {
  const cudaStream_t native = launch_stream(stream);
  visit(values.dtype(), "extend_values", [&]<class T>() {
    launch_heads(values.size(0), values.size(1), ExtendValues<T>{values.size(2), strided<T>(values), strided<T>(extended)}, native);
  });
}

void normalise(ConstTensorView extended, double epsilon, TensorView out, TensorView normaliser, StreamView stream) {
  const cudaStream_t native = launch_stream(stream);
  visit(out.dtype(), "normalise", [&]<class T>() {
    using A = AccumulatorOf<T>;
    launch_heads(out.size(0), out.size(1),
                 Normalise<T>{out.size(2), static_cast<A>(epsilon), strided<T>(extended), strided<T>(out), strided<A>(normaliser)}, native);
  });
}

void normalise_backward(ConstTensorView dout, ConstTensorView out, ConstTensorView normaliser, TensorView dextended, StreamView stream) {
  const cudaStream_t native = launch_stream(stream);
  visit(out.dtype(), "normalise_backward", [&]<class T>() {
    using A = AccumulatorOf<T>;
    launch_heads(out.size(0), out.size(1),
                 NormaliseBackward<T>{out.size(2), strided<T>(dout), strided<T>(out), strided<A>(normaliser), strided<T>(dextended)},
                 native);
  });
}

}  // namespace periplus::kernels::cuda
