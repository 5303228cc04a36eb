// Folds of elements: the states that a few neighbouring numbers of T S + M depend on stay with one block, which takes all steps.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear_rungs.h"
#include "kernels/cuda/operands.cuh"
#include "kernels/cuda/resident.h"

namespace periplus::kernels::cuda::plain {
namespace {

template <class A>
struct Scan {
  ScanShape shape;
  Strided<const A> elements;
  Strided<A> states;
  const ScanStep* steps;
  std::int64_t step_count, transition_numbers;
  bool reverse;

  __device__ std::int64_t element(const ScanStep& step, std::int64_t i) const { return reverse ? step.end - 1 - i : step.begin + i; }
};

constexpr unsigned kThreads = 256;

/// A thread has one number of the state.
template <class A>
__global__ void __launch_bounds__(kThreads) scan_numbers(const Scan<A> scan) {
  const int head = static_cast<int>(blockIdx.y);
  const std::int64_t number = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (number >= scan.shape.rows * scan.shape.columns) return;
  const std::int64_t line = scan.shape.transition == Transition::identity ? 0 : number / scan.shape.columns;
  for (std::int64_t s = 0; s < scan.step_count; ++s) {
    const ScanStep step = scan.steps[s];
    A state = step.from < 0 ? A{0} : at(scan.states, step.from, head)[number];
    for (std::int64_t i = 0; i < step.end - step.begin; ++i) {
      const A* const element = at(scan.elements, scan.element(step, i), head);
      const A factor = scan.shape.transition == Transition::identity ? A{1} : element[line];
      // Not 0 times a state that is not there.
      state = (i == 0 && step.from < 0 ? A{0} : factor * state) + element[scan.transition_numbers + number];
    }
    at(scan.states, step.target, head)[number] = state;
  }
}

constexpr int kColumns = 8, kMostRows = kMostWidth, kRowsAtOnce = static_cast<int>(kThreads) / kColumns;

/// A block has a few columns of the state.
template <class A>
__global__ void __launch_bounds__(kThreads) scan_dense(const Scan<A> scan) {
  __shared__ A held[kMostRows][kColumns];
  const int head = static_cast<int>(blockIdx.y), rows = static_cast<int>(scan.shape.rows);
  const int own = static_cast<int>(threadIdx.x) % kColumns, first = static_cast<int>(threadIdx.x) / kColumns;
  const std::int64_t column = std::int64_t{blockIdx.x} * kColumns + own;
  const bool inside = column < scan.shape.columns;
  const auto for_each_row = [&](const auto& visit) {
    for (int i = 0; i < kMostRows / kRowsAtOnce; ++i) {
      const int row = first + i * kRowsAtOnce;
      if (inside && row < rows) visit(row, row * scan.shape.columns + column);
    }
  };
  for (std::int64_t s = 0; s < scan.step_count; ++s) {
    const ScanStep step = scan.steps[s];
    A* const target = at(scan.states, step.target, head);
    for_each_row([&](int, std::int64_t number) { target[number] = step.from < 0 ? A{0} : at(scan.states, step.from, head)[number]; });
    for (std::int64_t e = 0; e < step.end - step.begin; ++e) {
      const A* const element = at(scan.elements, scan.element(step, e), head);
      for_each_row([&](int row, std::int64_t number) { held[row][own] = target[number]; });
      __syncthreads();
      for_each_row([&](int row, std::int64_t number) {
        A sum = element[scan.transition_numbers + number];
        for (int j = 0; j < rows && (e > 0 || step.from >= 0); ++j) {
          sum += element[scan.reverse ? j * rows + row : row * rows + j] * held[j][own];
        }
        target[number] = sum;
      });
      __syncthreads();
    }
  }
}

}  // namespace

void unit_scan(const ScanShape& shape, ConstTensorView elements, std::span<const UnitFold> folds, bool reverse, TensorView states,
               Update update, StreamView stream) {
  const bool dense = shape.transition == Transition::dense;
  const std::vector<ScanStep> steps = scan_steps(folds, reverse, update);
  const cudaStream_t native = launch_stream(stream);
  visit_dtype<double, float>(states.dtype(), "unit_scan", [&]<class A>() {
    const auto on_device = resident(std::span<const ScanStep>(steps), stream);
    const Scan<A> scan{shape,           strided<A>(elements), strided<A>(states),
                       on_device.get(), std::ssize(steps),    transition_width(shape.transition, shape.rows),
                       reverse};
    const std::int64_t lines = dense ? shape.columns : shape.rows * shape.columns, of_block = dense ? kColumns : kThreads;
    const dim3 grid(static_cast<unsigned>((lines + of_block - 1) / of_block), static_cast<unsigned>(shape.heads));
    launch("launch of unit_scan", dense ? scan_dense<A> : scan_numbers<A>, grid, kThreads, 0, native, scan);
  });
}

}  // namespace periplus::kernels::cuda::plain
