// Linear attention and the delta rule token by token: elements and outputs.
#include <vector>

#include "kernels/cuda/linear_plain.cuh"
#include "kernels/cuda/resident.h"

namespace periplus::kernels::cuda::plain {
namespace {

/// Sums of log decays may be long: in f64.
template <class S, class A>
__device__ void store_decay(const LinearProblem<S, A>& p, const UnitRun& run, int head, A* to) {
  for (std::int64_t number = lane(); number < p.shape.decay_width; number += 32) {
    double sum = 0;
    for (std::int64_t row = run.row0; row < run.row0 + run.rows; ++row) sum += static_cast<double>(at(p.log_decay, row, head)[number]);
    to[number] = static_cast<A>(exp(sum));
  }
}

/// Elements of a run of each unit, perhaps of no rows; `dout` given: of backward. For the delta rule the columns of the transition
/// come first: they start as those of the identity and take no values. Else one more warp makes the transition.
template <int depth, class S, class A>
__global__ void __launch_bounds__(kThreads) make_elements(const LinearProblem<S, A> p, Strided<const S> dout, Strided<A> elements) {
  const UnitRun run = p.runs[blockIdx.x];
  const int head = static_cast<int>(blockIdx.z);
  const std::int64_t column = blockIdx.y * kWarps + warp(), width = p.shape.width_qk, columns = p.shape.width_v;
  const bool dense = p.shape.transition == Transition::dense;
  const std::int64_t lead = dense ? width : 0, value_column = column - lead;
  A* const to = at(elements, run.unit, head);
  if (value_column > columns) return;
  if (value_column == columns) {
    if (!dense) store_decay(p, run, head, to);
    return;
  }
  const auto value_of = [&](const Strided<const S>& values, std::int64_t row) {
    return value_column < 0 ? A{0} : static_cast<A>(at(values, row, head)[value_column]);
  };
  Spread<A, depth> state{};
  if (value_column < 0) for_each_number<depth>(width, [&](int i, std::int64_t number) { state.value[i] = number == column ? 1 : 0; });
  for (std::int64_t i = 0; i < run.rows; ++i) {
    if (dout.data == nullptr) {
      advance(p, run.row0 + i, head, value_of(p.v, run.row0 + i), state);
    } else {
      const std::int64_t row = run.row0 + run.rows - 1 - i;
      retreat(p, row, head, value_of(dout, row), state);
    }
  }
  // Backward moves the identity by the transpose of the transition.
  const bool transposed = value_column < 0 && dout.data != nullptr;
  A* const first =
      value_column >= 0 ? to + (dense ? width * width : p.shape.decay_width) + value_column : to + (transposed ? column * width : column);
  const std::int64_t stride = value_column >= 0 ? columns : transposed ? 1 : width;
  for_each_number<depth>(width, [&](int i, std::int64_t number) { first[number * stride] = state.value[i]; });
}

template <int depth, class S, class A>
__global__ void __launch_bounds__(kThreads) apply(const LinearProblem<S, A> p, Strided<const A> incoming, Strided<S> out) {
  const UnitRun run = p.runs[blockIdx.x];
  const int head = static_cast<int>(blockIdx.z);
  const std::int64_t column = blockIdx.y * kWarps + warp();
  if (column >= p.shape.width_v) return;
  auto state = load_column<depth>(incoming, run.enters, run.unit, head, p.shape, column);
  for (std::int64_t row = run.row0; row < run.row0 + run.rows; ++row) {
    advance(p, row, head, static_cast<A>(at(p.v, row, head)[column]), state);
    const A sum = dot(load_spread<A, depth>(at(p.q, row, head), p.shape.width_qk), state);
    if (lane() == 0) at(out, row, head)[column] = static_cast<S>(static_cast<A>(p.scale) * sum);
  }
}

void launch_elements(const LinearShape& shape, const LinearBlock& block, const ConstTensorView& dout, std::span<const UnitRun> runs,
                     const TensorView& elements, StreamView stream) {
  const cudaStream_t native = launch_stream(stream);
  const std::int64_t lead = shape.transition == Transition::dense ? shape.width_qk : 0;
  const DType dtype = dout.dims() == 0 ? block.k.dtype() : dout.dtype();
  visit(dtype, shape.width_qk, "unit_states", [&]<class T, int depth>() {
    using S = DeviceValue<T>;
    using A = AccumulatorOf<T>;
    launch("launch of plain linear attention elements", make_elements<depth, S, A>,
           grid_of(std::ssize(runs), lead + shape.width_v + 1, shape.heads), kThreads, 0, native,
           problem_of<T>(shape, block, resident(runs, stream).get(), std::ssize(runs)), strided<T>(dout), strided<A>(elements));
  });
}

}  // namespace

void unit_states(const LinearShape& shape, const LinearBlock& block, TensorView elements, StreamView stream) {
  const auto runs = run_of_units(shape, block.runs, [](const UnitRun& run) { return run.leaves; });
  launch_elements(shape, block, {}, runs, elements, stream);
}

void unit_states_backward(const LinearShape& shape, const LinearBlock& block, ConstTensorView dout, TensorView elements,
                          StreamView stream) {
  const auto runs = run_of_units(shape, block.runs, [](const UnitRun& run) { return run.enters; });
  launch_elements(shape, block, dout, runs, elements, stream);
}

void unit_apply(const LinearShape& shape, const LinearBlock& block, ConstTensorView incoming, TensorView out, StreamView stream) {
  const cudaStream_t native = launch_stream(stream);
  visit(out.dtype(), shape.width_qk, "unit_apply", [&]<class T, int depth>() {
    using S = DeviceValue<T>;
    using A = AccumulatorOf<T>;
    launch("launch of plain linear attention", apply<depth, S, A>, grid_of(std::ssize(block.runs), shape.width_v, shape.heads), kThreads, 0,
           native, problem_of<T>(shape, block, resident(block.runs, stream).get(), std::ssize(block.runs)), strided<A>(incoming),
           strided<T>(out));
  });
}

}  // namespace periplus::kernels::cuda::plain
