#include "kernels/operands.h"

namespace periplus::kernels {
namespace {

void check_shape(std::string_view op, std::string_view name, const ConstTensorView& view, const Extents& shape, DType dtype) {
  if (!(view.shape() == shape)) refuse("{}: {} has shape {}, expected {}", op, name, to_string(view.shape()), to_string(shape));
  if (view.dtype() != dtype) refuse("{}: {} is {}, expected {}", op, name, to_string(view.dtype()), to_string(dtype));
}

}  // namespace

void check_dims(std::string_view op, std::string_view name, const ConstTensorView& view, int dims) {
  if (view.dims() != dims) refuse("{}: {} has shape {}, expected {} dimensions", op, name, to_string(view.shape()), dims);
}

void check_operand(std::string_view op, std::string_view name, const ConstTensorView& view, const Extents& shape, DType dtype) {
  check_shape(op, name, view, shape, dtype);
  if (shape[2] > 1 && view.stride(2) != 1) {
    refuse("{}: {} has width stride {}; the width must be contiguous", op, name, view.stride(2));
  }
}

void check_dense(std::string_view op, std::string_view name, const ConstTensorView& view, const Extents& shape, DType dtype) {
  check_shape(op, name, view, shape, dtype);
  if (view.contiguous()) return;
  refuse("{}: {} {} has strides {}; it must be contiguous, copy it first", op, name, to_string(view.shape()), to_string(view.strides()));
}

void check_runs(std::string_view op, std::span<const UnitRun> runs, std::int64_t rows) {
  std::int64_t free = 0;  // first row that no earlier run holds
  for (const UnitRun& run : runs) {
    require(run.row0 >= 0 && run.rows > 0 && run.row0 + run.rows <= rows,
            "{}: run of {} rows from row {} on is empty or leaves the block of {} rows", op, run.rows, run.row0, rows);
    require(run.row0 >= free, "{}: run from row {} on begins before the run ahead of it ends, at row {}; runs must be in the order of rows",
            op, run.row0, free);
    free = run.row0 + run.rows;
  }
}

}  // namespace periplus::kernels
