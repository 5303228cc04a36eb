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

/// Checks of operands, and how they are handed to an implementation.
namespace periplus::kernels {

/// Type of states and statistics.
template <class S>
using Accumulator = std::conditional_t<std::is_same_v<S, double>, double, float>;

/// body.operator()<S>() for the storage type.
template <class Body>
void visit_storage(DType dtype, std::string_view op, const Body& body) {
  visit_dtype<double, float, bfloat16, float16>(dtype, op, body);
}

inline bool on_cuda(StreamView stream) { return stream.device().kind == DeviceKind::cuda; }

template <class... Values>
[[noreturn]] void refuse(fmt::format_string<Values...> message, Values&&... values) {
  throw InvalidArgument(fmt::format(message, std::forward<Values>(values)...));
}
template <class... Values>
void require(bool holds, fmt::format_string<Values...> message, Values&&... values) {
  if (!holds) refuse(message, std::forward<Values>(values)...);
}

inline bool given(const ConstTensorView& view) { return view.dims() != 0; }

void check_dims(std::string_view op, std::string_view name, const ConstTensorView& view, int dims = 3);
/// [rows, heads, width] of this shape and type, the width contiguous.
void check_operand(std::string_view op, std::string_view name, const ConstTensorView& view, const Extents& shape, DType dtype);
/// Contiguous, of this shape and type.
void check_dense(std::string_view op, std::string_view name, const ConstTensorView& view, const Extents& shape, DType dtype);
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

template <class T>
[[gnu::always_inline]] inline T* at(const Strided<T>& tensor, std::int64_t row, std::int64_t head) {
  return tensor.data + row * tensor.row + head * tensor.head;
}

}  // namespace periplus::kernels
