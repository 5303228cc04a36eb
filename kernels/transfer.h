#pragma once

#include <span>

#include "kernels/row_move.h"
#include "runtime/device.h"
#include "runtime/tensor.h"

/// Copies and sums between views of one device: [rows, heads, width] with contiguous width and any row and head strides.
///
/// Types    Any two of f64, f32, bf16 and f16, as copy() and add() of runtime/tensor.h: one rounding, in the wider type. A copy
///          within any one type moves bytes.
/// Effects  Work is done when the stream has passed; a CPU stream's progress hook is called every 32 Ki elements or so.
///          Source and destination must not overlap.
/// Errors   InvalidArgument on shape, dtype or stride; BackendUnavailable if the device is not built in.
namespace periplus::kernels {

/// destination := source.
void copy(ConstTensorView source, TensorView destination, StreamView stream);
/// destination += source.
void add(ConstTensorView source, TensorView destination, StreamView stream);
/// The moved rows of destination := those of source; the others stay. Rows that moves write must be disjoint. One launch on
/// CUDA for up to some 250 moves, if strides are below 65,536 rows; longer ones go row by row.
void move_rows(ConstTensorView source, TensorView destination, std::span<const RowMove> moves, StreamView stream);

}  // namespace periplus::kernels
