#include "kernels/cpu/unit_scan.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/parallel.h"
#include "kernels/rows.h"

namespace periplus::kernels::cpu {
namespace {

#define PERIPLUS_INLINE [[gnu::always_inline]] inline

/// Numbers that say T: as many as rows where they differ by row.
PERIPLUS_INLINE std::int64_t transition_numbers(const ScanShape& shape) { return transition_width(shape.transition, shape.rows); }

// state := T state + M with T diagonal.
template <class A>
PERIPLUS_INLINE void apply_rows(const ScanShape& shape, const A* transition, const A* added, A* state) {
  for (std::int64_t row = 0; row < shape.rows; ++row) {
    const A factor = shape.transition == Transition::identity ? A{1} : transition[row];
    const std::int64_t at = row * shape.columns;
#pragma GCC ivdep
    for (std::int64_t i = 0; i < shape.columns; ++i) state[at + i] = factor * state[at + i] + added[at + i];
  }
}

/// Numbers of T: T[row][i], or of its transpose.
template <class A>
struct Dense {
  const A* data;
  std::int64_t row, inner;
  PERIPLUS_INLINE A operator()(std::int64_t r, std::int64_t i) const { return data[r * row + i * inner]; }
};

/// Columns [begin, end) of rows [row, row + rows), element by element: the edges that tiles leave.
template <class A>
PERIPLUS_INLINE void apply_edge(const ScanShape& shape, const Dense<A>& transition, const A* added, const A* from, std::int64_t row,
                                std::int64_t rows, std::int64_t begin, std::int64_t end, A* to) {
  for (std::int64_t r = row; r < row + rows; ++r) {
    A* sums = to + r * shape.columns;
    for (std::int64_t c = begin; c < end; ++c) sums[c] = added[r * shape.columns + c];
    for (std::int64_t i = 0; i < shape.rows; ++i) {
      const A factor = transition(r, i);
#pragma GCC ivdep
      for (std::int64_t c = begin; c < end; ++c) sums[c] += factor * from[i * shape.columns + c];
    }
  }
}

// to := T from + M. A few rows share each load of `from`, and their sums stay in registers.
template <class A>
PERIPLUS_INLINE void apply_dense(const ScanShape& shape, const Dense<A>& transition, const A* added, const A* from, A* to) {
  using Vec [[gnu::vector_size(64), gnu::aligned(alignof(A)), gnu::may_alias]] = A;
  constexpr std::int64_t kRows = 8, kLanes = 64 / sizeof(A), kVectors = 2;
  const std::int64_t full_rows = shape.rows / kRows * kRows, columns = shape.columns;
  const std::int64_t full_columns = columns / (kVectors * kLanes) * (kVectors * kLanes);
  const auto vector = [](auto* at, std::int64_t i) { return reinterpret_cast<const Vec*>(at) + i; };
  for (std::int64_t row = 0; row < full_rows; row += kRows) {
    for (std::int64_t column = 0; column < full_columns; column += kVectors * kLanes) {
      Vec sums[kRows][kVectors];
      for (std::int64_t r = 0; r < kRows; ++r) {
        for (std::int64_t v = 0; v < kVectors; ++v) sums[r][v] = *vector(added + (row + r) * columns + column, v);
      }
      for (std::int64_t i = 0; i < shape.rows; ++i) {
        for (std::int64_t r = 0; r < kRows; ++r) {
          for (std::int64_t v = 0; v < kVectors; ++v) sums[r][v] += transition(row + r, i) * *vector(from + i * columns + column, v);
        }
      }
      for (std::int64_t r = 0; r < kRows; ++r) {
        for (std::int64_t v = 0; v < kVectors; ++v) reinterpret_cast<Vec*>(to + (row + r) * columns + column)[v] = sums[r][v];
      }
    }
  }
  apply_edge(shape, transition, added, from, 0, full_rows, full_columns, columns, to);
  apply_edge(shape, transition, added, from, full_rows, shape.rows - full_rows, 0, columns, to);
}

/// state := element of state.
template <class A>
PERIPLUS_INLINE void apply(const ScanShape& shape, const A* element, bool reverse, A* state, std::vector<A>& scratch) {
  const A* added = element + transition_numbers(shape);
  if (shape.transition != Transition::dense) return apply_rows(shape, element, added, state);
  const Dense<A> transition{element, reverse ? 1 : shape.rows, reverse ? shape.rows : 1};
  apply_dense(shape, transition, added, state, scratch.data());
  std::copy_n(scratch.data(), shape.rows * shape.columns, state);
}

template <class A>
void scan_head(const ScanShape& shape, const Strided<const A>& elements, std::span<const ScanStep> steps, bool reverse,
               const Strided<A>& states, std::int64_t head, const Progress& progress) {
  const std::int64_t size = shape.rows * shape.columns;
  std::vector<A> scratch(static_cast<std::size_t>(shape.transition == Transition::dense ? size : 0));
  const auto state_of = [&](std::int64_t row) { return states.data + row * states.row + head * states.head; };
  for (const ScanStep& step : steps) {
    A* state = state_of(step.target);
    bool empty = step.from == ScanStep::kZero;
    if (empty) {
      std::fill_n(state, size, A{0});
    } else if (step.from != step.target) {
      std::copy_n(state_of(step.from), size, state);
    }
    for (std::int64_t i = 0; i < step.end - step.begin; ++i) {
      const std::int64_t row = reverse ? step.end - 1 - i : step.begin + i;
      const A* element = elements.data + row * elements.row + head * elements.head;
      if (empty) {
        std::copy_n(element + transition_numbers(shape), size, state);
      } else {
        with_best_instructions([&]() __attribute__((always_inline)) { apply(shape, element, reverse, state, scratch); });
      }
      empty = false;
      progress();
    }
  }
}

}  // namespace

template <class A>
void unit_scan(const ScanShape& shape, Strided<const A> elements, std::span<const UnitFold> folds, bool reverse, Strided<A> states,
               Update update, StreamView stream) {
  const std::vector<ScanStep> steps = scan_steps(folds, reverse, update);
  std::int64_t applied = 0;
  for (const ScanStep& step : steps) applied += step.end - step.begin;
  const std::int64_t per_number = shape.transition == Transition::dense ? 2 * shape.rows : 4;  // the others are bound by memory
  const double flop = static_cast<double>(applied * shape.heads * shape.rows * shape.columns * per_number);
  for_each_item(shape.heads, flop, stream, [&](std::int64_t head, const Progress& progress) {
    scan_head(shape, elements, std::span<const ScanStep>(steps), reverse, states, head, progress);
  });
}

template void unit_scan(const ScanShape&, Strided<const double>, std::span<const UnitFold>, bool, Strided<double>, Update, StreamView);
template void unit_scan(const ScanShape&, Strided<const float>, std::span<const UnitFold>, bool, Strided<float>, Update, StreamView);

#undef PERIPLUS_INLINE

}  // namespace periplus::kernels::cpu
