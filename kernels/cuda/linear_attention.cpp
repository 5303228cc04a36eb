// Which rung runs a call.
#include "kernels/cuda/linear_attention.h"

#include <algorithm>

#include <fmt/format.h>

#include "kernels/cuda/linear_rungs.h"
#include "runtime/cuda/device.h"
#include "runtime/error.h"

namespace periplus::kernels::cuda {
namespace {

void require_narrow(std::string_view op, std::int64_t width) {
  if (width <= kMostWidth) return;
  throw InvalidArgument(fmt::format("{}: heads of width {}; CUDA kernels take widths up to {}", op, width, kMostWidth));
}
void require_narrow(std::string_view op, const LinearShape& shape) { require_narrow(op, std::max(shape.width_qk, shape.width_v)); }

}  // namespace

void unit_states(const LinearShape& shape, const LinearBlock& block, TensorView elements, StreamView stream) {
  require_narrow("unit_states", shape);
  const periplus::cuda::CurrentDevice current(stream.device().index);
  plain::unit_states(shape, block, elements, stream);
}

void unit_states_backward(const LinearShape& shape, const LinearBlock& block, ConstTensorView dout, TensorView elements,
                          StreamView stream) {
  require_narrow("unit_states_backward", shape);
  const periplus::cuda::CurrentDevice current(stream.device().index);
  plain::unit_states_backward(shape, block, dout, elements, stream);
}

void unit_scan(const ScanShape& shape, ConstTensorView elements, std::span<const UnitFold> folds, bool reverse, TensorView states,
               Update update, StreamView stream) {
  if (shape.transition == Transition::dense) require_narrow("unit_scan", shape.rows);
  const periplus::cuda::CurrentDevice current(stream.device().index);
  plain::unit_scan(shape, elements, folds, reverse, states, update, stream);
}

void unit_apply(const LinearShape& shape, const LinearBlock& block, ConstTensorView incoming, TensorView out, StreamView stream) {
  require_narrow("unit_apply", shape);
  const periplus::cuda::CurrentDevice current(stream.device().index);
  plain::unit_apply(shape, block, incoming, out, stream);
}

void unit_apply_backward(const LinearShape& shape, const LinearBlock& block, ConstTensorView incoming, ConstTensorView dout,
                         ConstTensorView doutgoing, const LinearGradients& gradients, StreamView stream) {
  require_narrow("unit_apply_backward", shape);
  const periplus::cuda::CurrentDevice current(stream.device().index);
  plain::unit_apply_backward(shape, block, incoming, dout, doutgoing, gradients, stream);
}

}  // namespace periplus::kernels::cuda
