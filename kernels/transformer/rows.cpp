#include "kernels/transformer/rows.h"

#include <fmt/format.h>

#include "runtime/error.h"

namespace periplus::kernels {

void require_dense(std::string_view op, std::string_view name, const ConstTensorView& view, const Extents& shape, DType dtype) {
  if (view.dtype() != dtype || !(view.shape() == shape)) {
    throw InvalidArgument(fmt::format("{}: {} is {} {}; it must be {} {}", op, name, to_string(view.dtype()), to_string(view.shape()),
                                      to_string(dtype), to_string(shape)));
  }
  if (!view.contiguous()) {
    throw InvalidArgument(fmt::format("{}: {} {} has strides {}; it must be contiguous, copy it first", op, name, to_string(view.shape()),
                                      to_string(view.strides())));
  }
}

void throw_dims(std::string_view op, std::string_view name, const ConstTensorView& view, int dims) {
  throw InvalidArgument(
      fmt::format("{}: {} has shape {}; it must have {} dimension{}", op, name, to_string(view.shape()), dims, dims == 1 ? "" : "s"));
}

}  // namespace periplus::kernels
