#include "kernels/linear_attention.h"

#include <cmath>
#include <vector>

#include "kernels/cpu/linear/units.h"
#include "kernels/cpu/unit_scan.h"
#include "kernels/cuda/linear_attention.h"
#include "kernels/linear_attention_problem.h"
#include "kernels/operands.h"
#include "kernels/reference/linear_attention.h"

namespace periplus::kernels {
namespace {

/// What all storage types but f64 run on.
namespace fast = cpu;

void check_result(std::string_view op, std::string_view name, const TensorView& view, const Extents& shape, DType dtype) {
  check_operand(op, name, view, shape, dtype);
  for (int dim = 0; dim < 2; ++dim) {
    require(shape[dim] <= 1 || view.stride(dim) != 0, "{}: {} has stride 0 in dimension {}, but its rows and heads are written apart", op,
            name, dim);
  }
}

void check_units(std::string_view op, std::span<const UnitRun> runs, std::int64_t units) {
  std::vector<bool> begun(static_cast<std::size_t>(units)), left(static_cast<std::size_t>(units));
  for (const UnitRun& run : runs) {
    require(run.unit >= 0 && run.unit < units, "{}: run from row {} on is of unit {}, but there are {} units", op, run.row0, run.unit,
            units);
    const auto unit = static_cast<std::size_t>(run.unit);
    require(!(run.enters && begun[unit]), "{}: run from row {} on enters unit {}, but is not its first run", op, run.row0, run.unit);
    require(!left[unit], "{}: run from row {} on follows the run that leaves unit {}; only the last run of a unit leaves it", op, run.row0,
            run.unit);
    begun[unit] = true;
    left[unit] = run.leaves;
  }
}

Transition transition_of(const LinearBlock& block) {
  if (given(block.beta)) return Transition::dense;
  if (!given(block.log_decay)) return Transition::identity;
  return block.log_decay.size(2) == 1 ? Transition::scalar : Transition::diagonal;
}

/// Which operands a call reads whatever the decay.
struct Needed {
  bool q, k, v;
};

LinearShape check_block(std::string_view op, const LinearBlock& block, const Needed& needed, const ConstTensorView& values,
                        std::int64_t units) {
  const auto& [q, k, v, log_decay, beta, runs, scale] = block;
  const ConstTensorView& keys = given(k) ? k : q;
  if (needed.q || given(q)) check_dims(op, "q", q);
  if (needed.k || given(k)) check_dims(op, "k", k);
  if (needed.v || given(v)) check_dims(op, "v", v);
  const std::int64_t rows = keys.size(0), heads = keys.size(1), width_qk = keys.size(2), width_v = values.size(2);
  require(heads >= 1 && width_qk >= 1 && width_v >= 1, "{}: {} heads of widths {} and {}; all must be at least 1", op, heads, width_qk,
          width_v);
  const DType dtype = keys.dtype(), accumulator = accumulator_of(dtype);
  if (given(q)) check_operand(op, "q", q, {rows, heads, width_qk}, dtype);
  if (given(k)) check_operand(op, "k", k, {rows, heads, width_qk}, dtype);
  if (given(v)) check_operand(op, "v", v, {rows, heads, width_v}, dtype);
  std::int64_t decay_width = 0;
  if (given(log_decay)) {
    check_dims(op, "log_decay", log_decay);
    decay_width = log_decay.size(2);
    require(decay_width == 1 || decay_width == width_qk, "{}: log_decay has width {}; expected 1 (per head) or {} (per channel of the key)",
            op, decay_width, width_qk);
    check_operand(op, "log_decay", log_decay, {rows, heads, decay_width}, accumulator);
  }
  if (given(beta)) check_operand(op, "beta", beta, {rows, heads, 1}, accumulator);
  check_runs(op, runs, rows);
  check_units(op, runs, units);
  return {rows, units, heads, width_qk, width_v, decay_width, transition_of(block)};
}

template <class S>
LinearProblem<S, Accumulator<S>> problem_of(const LinearShape& shape, const LinearBlock& block) {
  using A = Accumulator<S>;
  return {shape,
          block.scale,
          strided_or_null<S>(block.q),
          strided_or_null<S>(block.k),
          strided_or_null<S>(block.v),
          strided_or_null<A>(block.log_decay),
          strided_or_null<A>(block.beta),
          block.runs.data(),
          static_cast<std::int64_t>(block.runs.size())};
}

Extents element_shape(const LinearShape& shape) {
  return {shape.units, shape.heads, transition_width(shape.transition, shape.width_qk) + shape.width_qk * shape.width_v};
}
Extents state_shape(const LinearShape& shape) { return {shape.units, shape.heads, shape.width_qk * shape.width_v}; }
Extents key_shape(const LinearShape& shape) { return {shape.rows, shape.heads, shape.width_qk}; }
Extents value_shape(const LinearShape& shape) { return {shape.rows, shape.heads, shape.width_v}; }

/// The state's rows and columns, which the widths of elements and states tell.
ScanShape check_scan(std::string_view op, const ConstTensorView& elements, Transition transition, const ConstTensorView& states) {
  check_dims(op, "elements", elements);
  check_dims(op, "states", states);
  const std::int64_t size = states.size(2), numbers = elements.size(2) - size;
  std::int64_t rows = 1;
  if (transition == Transition::diagonal) rows = numbers;
  if (transition == Transition::dense) rows = std::llround(std::sqrt(static_cast<double>(std::max<std::int64_t>(numbers, 0))));
  const bool fits = rows >= 1 && numbers == transition_width(transition, rows) && size >= 1 && size % rows == 0;
  require(fits, "{}: elements have width {} and states width {}, which leaves {} numbers for a transition that takes {}", op,
          elements.size(2), size, numbers,
          transition == Transition::identity   ? "none"
          : transition == Transition::scalar   ? "one"
          : transition == Transition::diagonal ? "one per row of the state"
                                               : "a square matrix");
  require(states.size(1) >= 1, "{}: states have {} heads; there must be at least 1", op, states.size(1));
  return {states.size(1), rows, size / rows, transition};
}

void check_folds(std::string_view op, std::span<const UnitFold> folds, std::int64_t elements, std::int64_t states) {
  std::vector<bool> written(static_cast<std::size_t>(states));
  for (const UnitFold& fold : folds) {
    require(fold.begin >= 0 && fold.begin <= fold.end && fold.end <= elements, "{}: fold of elements [{}, {}) leaves the {} elements", op,
            fold.begin, fold.end, elements);
    require(fold.target >= 0 && fold.target < states, "{}: fold has target {}, but there are {} states", op, fold.target, states);
    require(!written[static_cast<std::size_t>(fold.target)], "{}: two folds have target {}", op, fold.target);
    written[static_cast<std::size_t>(fold.target)] = true;
  }
}

}  // namespace

std::int64_t transition_width(Transition transition, std::int64_t head_size) noexcept {
  switch (transition) {
    case Transition::identity:
      return 0;
    case Transition::scalar:
      return 1;
    case Transition::diagonal:
      return head_size;
    case Transition::dense:
      return head_size * head_size;
  }
  return 0;
}

void unit_states(const LinearBlock& block, TensorView elements, StreamView stream) {
  constexpr std::string_view op = "unit_states";
  check_dims(op, "elements", elements);
  const LinearShape shape = check_block(op, block, {.q = false, .k = true, .v = true}, block.v, elements.size(0));
  const DType dtype = block.k.dtype();
  check_result(op, "elements", elements, element_shape(shape), accumulator_of(dtype));
  if (on_cuda(stream)) return cuda::unit_states(shape, block, elements, stream);
  visit_storage(dtype, op, [&]<class S>() {
    const auto problem = problem_of<S>(shape, block);
    const auto to = strided<Accumulator<S>>(elements);
    if constexpr (std::is_same_v<S, double>) {
      reference::unit_states(problem, to, stream);
    } else {
      fast::unit_states(problem, to, stream);
    }
  });
}

void unit_states_backward(const LinearBlock& block, ConstTensorView dout, TensorView elements, StreamView stream) {
  constexpr std::string_view op = "unit_states_backward";
  check_dims(op, "dout", dout);
  check_dims(op, "elements", elements);
  const LinearShape shape = check_block(op, block, {.q = true, .k = given(block.beta), .v = false}, dout, elements.size(0));
  const DType dtype = block.q.dtype();
  check_operand(op, "dout", dout, value_shape(shape), dtype);
  check_result(op, "elements", elements, element_shape(shape), accumulator_of(dtype));
  if (on_cuda(stream)) return cuda::unit_states_backward(shape, block, dout, elements, stream);
  visit_storage(dtype, op, [&]<class S>() {
    const auto problem = problem_of<S>(shape, block);
    const auto to = strided<Accumulator<S>>(elements);
    if constexpr (std::is_same_v<S, double>) {
      reference::unit_states_backward(problem, strided<S>(dout), to, stream);
    } else {
      fast::unit_states_backward(problem, strided<S>(dout), to, stream);
    }
  });
}

void unit_scan(ConstTensorView elements, std::span<const UnitFold> folds, Transition transition, bool reverse, TensorView states,
               Update update, StreamView stream) {
  constexpr std::string_view op = "unit_scan";
  const ScanShape shape = check_scan(op, elements, transition, states);
  const DType dtype = states.dtype();
  check_operand(op, "elements", elements, {elements.size(0), shape.heads, elements.size(2)}, dtype);
  check_result(op, "states", states, states.shape(), dtype);
  check_folds(op, folds, elements.size(0), states.size(0));
  if (on_cuda(stream)) return cuda::unit_scan(shape, elements, folds, reverse, states, update, stream);
  visit_dtype<double, float>(
      dtype, op, [&]<class A>() { cpu::unit_scan<A>(shape, strided<A>(elements), folds, reverse, strided<A>(states), update, stream); });
}

void unit_apply(const LinearBlock& block, ConstTensorView incoming, TensorView out, StreamView stream) {
  constexpr std::string_view op = "unit_apply";
  check_dims(op, "incoming", incoming);
  const LinearShape shape = check_block(op, block, {.q = true, .k = true, .v = true}, block.v, incoming.size(0));
  const DType dtype = block.q.dtype();
  check_operand(op, "incoming", incoming, state_shape(shape), accumulator_of(dtype));
  check_result(op, "out", out, value_shape(shape), dtype);
  if (on_cuda(stream)) return cuda::unit_apply(shape, block, incoming, out, stream);
  visit_storage(dtype, op, [&]<class S>() {
    const auto problem = problem_of<S>(shape, block);
    const auto from = strided<Accumulator<S>>(incoming);
    if constexpr (std::is_same_v<S, double>) {
      reference::unit_apply(problem, from, strided<S>(out), stream);
    } else {
      fast::unit_apply(problem, from, strided<S>(out), stream);
    }
  });
}

namespace {

void check_gradients(std::string_view op, const LinearBlock& block, const LinearShape& shape, const LinearGradients& gradients) {
  const DType dtype = block.q.dtype(), accumulator = accumulator_of(dtype);
  check_result(op, "dq", gradients.dq, key_shape(shape), dtype);
  check_result(op, "dk", gradients.dk, key_shape(shape), dtype);
  check_result(op, "dv", gradients.dv, value_shape(shape), dtype);
  require(given(gradients.dlog_decay) == given(block.log_decay), "{}: dlog_decay must be given exactly when log_decay is", op);
  require(given(gradients.dbeta) == given(block.beta), "{}: dbeta must be given exactly when beta is", op);
  if (given(block.log_decay)) check_result(op, "dlog_decay", gradients.dlog_decay, block.log_decay.shape(), accumulator);
  if (given(block.beta)) check_result(op, "dbeta", gradients.dbeta, block.beta.shape(), accumulator);
}

template <class S>
LinearResults<S, Accumulator<S>> results_of(const LinearGradients& gradients) {
  using A = Accumulator<S>;
  const auto or_null = [](const TensorView& view) { return given(view) ? strided<A>(view) : Strided<A>{nullptr, 0, 0}; };
  return {strided<S>(gradients.dq), strided<S>(gradients.dk), strided<S>(gradients.dv), or_null(gradients.dlog_decay),
          or_null(gradients.dbeta)};
}

}  // namespace

void unit_apply_backward(const LinearBlock& block, ConstTensorView incoming, ConstTensorView dout, ConstTensorView doutgoing,
                         const LinearGradients& gradients, StreamView stream) {
  constexpr std::string_view op = "unit_apply_backward";
  check_dims(op, "incoming", incoming);
  const LinearShape shape = check_block(op, block, {.q = true, .k = true, .v = true}, block.v, incoming.size(0));
  const DType dtype = block.q.dtype();
  check_operand(op, "incoming", incoming, state_shape(shape), accumulator_of(dtype));
  check_operand(op, "doutgoing", doutgoing, state_shape(shape), accumulator_of(dtype));
  check_operand(op, "dout", dout, value_shape(shape), dtype);
  check_gradients(op, block, shape, gradients);
  if (on_cuda(stream)) return cuda::unit_apply_backward(shape, block, incoming, dout, doutgoing, gradients, stream);
  visit_storage(dtype, op, [&]<class S>() {
    using A = Accumulator<S>;
    const auto problem = problem_of<S>(shape, block);
    const auto results = results_of<S>(gradients);
    if constexpr (std::is_same_v<S, double>) {
      reference::unit_apply_backward(problem, strided<A>(incoming), strided<S>(dout), strided<A>(doutgoing), results, stream);
    } else {
      fast::unit_apply_backward(problem, strided<A>(incoming), strided<S>(dout), strided<A>(doutgoing), results, stream);
    }
  });
}

}  // namespace periplus::kernels
