#include "kernels/transfer.h"

#include <algorithm>

#include "kernels/cuda/transfer.h"
#include "kernels/operands.h"

namespace periplus::kernels {
namespace {

/// Rows of some 32 Ki elements: whole-shard copies and sums are long, and messages move in between.
std::int64_t rows_between_messages(const ConstTensorView& tensor) {
  return std::max<std::int64_t>(1, 32 * 1024 / std::max<std::int64_t>(1, tensor.size(1) * tensor.size(2)));
}

void by_rows(void (*operation)(ConstTensorView, TensorView), const ConstTensorView& source, const TensorView& destination,
             StreamView stream) {
  const std::int64_t rows = source.size(0), piece = rows_between_messages(source);
  for (std::int64_t row = 0; row < rows; row += piece) {
    const std::int64_t count = std::min(piece, rows - row);
    operation(source.slice(0, row, count), destination.slice(0, row, count));
    stream.progress();
  }
}

/// `count` rows, `stride` apart.
template <class View>
View rows_of(const View& view, std::int64_t first, std::int64_t count, std::int64_t stride) {
  const View rows = view.slice(0, first, count);
  Extents strides = rows.strides();
  strides.value[0] *= stride;
  return View(rows.bytes(), rows.dtype(), rows.shape(), strides);
}

void move_rows_on_cpu(const ConstTensorView& source, const TensorView& destination, std::span<const RowMove> moves, StreamView stream) {
  const std::int64_t piece = rows_between_messages(source);
  std::int64_t since = 0;
  for (const RowMove& move : moves) {
    const ConstTensorView from = rows_of(source, move.from, move.rows, move.from_stride);
    const TensorView to = rows_of(destination, move.to, move.rows, move.to_stride);
    move.rows < piece ? periplus::copy(from, to) : by_rows(periplus::copy, from, to, stream);
    since += move.rows;
    if (since < piece) continue;
    stream.progress();
    since = 0;
  }
}

void check_view(std::string_view op, std::string_view name, const ConstTensorView& view) {
  check_dims(op, name, view);
  check_operand(op, name, view, view.shape(), view.dtype());
  if (view.bytes() == nullptr && view.elements() > 0) refuse("{}: {} of shape {} has no memory", op, name, to_string(view.shape()));
}

void check_pair(std::string_view op, const ConstTensorView& source, const ConstTensorView& destination) {
  check_view(op, "source", source);
  check_view(op, "destination", destination);
  if (source.size(1) == destination.size(1) && source.size(2) == destination.size(2)) return;
  refuse("{}: rows of source {} and destination {} differ in shape", op, to_string(source.shape()), to_string(destination.shape()));
}

void check_same_shape(std::string_view op, const ConstTensorView& source, const ConstTensorView& destination) {
  check_pair(op, source, destination);
  if (source.size(0) == destination.size(0)) return;
  refuse("{}: source shape {} differs from destination shape {}", op, to_string(source.shape()), to_string(destination.shape()));
}

void check_moves(const ConstTensorView& source, const ConstTensorView& destination, std::span<const RowMove> moves) {
  for (const RowMove& move : moves) {
    if (move.fits(source.size(0), destination.size(0))) continue;
    refuse("move_rows: {} rows from {} to {}, strides {} and {}, do not lie inside source {} and destination {}", move.rows, move.from,
           move.to, move.from_stride, move.to_stride, to_string(source.shape()), to_string(destination.shape()));
  }
}

}  // namespace

void copy(ConstTensorView source, TensorView destination, StreamView stream) {
  check_same_shape("copy", source, destination);
  if (source.elements() == 0) return;
  const RowMove all{0, 0, source.size(0)};
  on_cuda(stream) ? cuda::move_rows(source, destination, {&all, 1}, stream) : by_rows(periplus::copy, source, destination, stream);
}

void add(ConstTensorView source, TensorView destination, StreamView stream) {
  check_same_shape("add", source, destination);
  if (source.elements() == 0) return;
  on_cuda(stream) ? cuda::add(source, destination, stream) : by_rows(periplus::add, source, destination, stream);
}

void move_rows(ConstTensorView source, TensorView destination, std::span<const RowMove> moves, StreamView stream) {
  check_pair("move_rows", source, destination);
  check_moves(source, destination, moves);
  if (source.elements() == 0) return;
  on_cuda(stream) ? cuda::move_rows(source, destination, moves, stream) : move_rows_on_cpu(source, destination, moves, stream);
}

}  // namespace periplus::kernels
