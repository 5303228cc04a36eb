#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>

#include <fmt/format.h>

#include "kernels/attention_problem.h"
#include "kernels/linear_attention.h"
#include "runtime/device.h"
#include "runtime/error.h"
#include "runtime/tensor.h"

/// Checks of the operands that attention and linear attention take, and how those hand them to an implementation.
namespace periplus::kernels {

/// Type of states and statistics.
template <class S>
using Accumulator = std::conditional_t<std::is_same_v<S, double>, double, float>;

inline bool on_cuda(StreamView stream) { return stream.device().kind == DeviceKind::cuda; }

template <class... Values>
void require(bool holds, fmt::format_string<Values...> message, Values&&... values) {
  if (!holds) throw InvalidArgument(fmt::format(message, std::forward<Values>(values)...));
}

inline bool given(const ConstTensorView& view) { return view.dims() != 0; }

/// An operand that must be [rows, heads, width] of `dtype`.
inline void check_operand(std::string_view op, std::string_view name, const ConstTensorView& view, const Extents& shape, DType dtype) {
  require(view.shape() == shape, "{}: {} has shape {}, expected {}", op, name, to_string(view.shape()), to_string(shape));
  require(view.dtype() == dtype, "{}: {} is {}, expected {}", op, name, to_string(view.dtype()), to_string(dtype));
  require(shape[2] <= 1 || view.stride(2) == 1, "{}: {} has width stride {}; the width must be contiguous", op, name, view.stride(2));
}

inline void check_dims(std::string_view op, std::string_view name, const ConstTensorView& view) {
  require(view.dims() == 3, "{}: {} has shape {}, expected [rows, heads, width]", op, name, to_string(view.shape()));
}

/// Runs of rows that are there, in rising order and apart.
void check_runs(std::string_view op, std::span<const UnitRun> runs, std::int64_t rows);

template <class T>
Strided<const T> strided(const ConstTensorView& view) {
  return {view.data<T>(), view.stride(0), view.stride(1)};
}

template <class T>
Strided<T> strided(const TensorView& view) {
  return {view.data<T>(), view.stride(0), view.stride(1)};
}

template <class T>
Strided<const T> strided_or_null(const ConstTensorView& view) {
  return given(view) ? strided<T>(view) : Strided<const T>{nullptr, 0, 0};
}

}  // namespace periplus::kernels
