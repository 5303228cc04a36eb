// Which rung runs a call.
#include "kernels/cuda/linear_attention.h"

#include <algorithm>

#include <fmt/format.h>

#include "kernels/cuda/linear_rungs.h"
#include "kernels/cuda/portable_delta.h"
#include "kernels/cuda/rung.h"
#include "runtime/cuda/device.h"
#include "runtime/error.h"

namespace periplus::kernels::cuda {
namespace {

void require_narrow(std::string_view op, std::int64_t width) {
  if (width <= kMostWidth) return;
  throw InvalidArgument(fmt::format("{}: heads of width {}; CUDA kernels take widths up to {}", op, width, kMostWidth));
}
void require_narrow(std::string_view op, const LinearShape& shape) { require_narrow(op, std::max(shape.width_qk, shape.width_v)); }

/// `operands` are all of storage type that the call reads or writes.
bool runs_portable(const LinearShape& shape, const LinearBlock& block, std::initializer_list<ConstTensorView> operands, StreamView stream) {
  const int device = stream.device().index;
  const bool delta_rule = shape.transition == Transition::dense;
  if (delta_rule && periplus::cuda::known_properties(device).shared_bytes_per_block < portable::delta::kSharedBytes) return false;
  return best_rung(device) >= Rung::portable && portable::supports(shape, block, operands);
}

}  // namespace

void unit_states(const LinearShape& shape, const LinearBlock& block, TensorView elements, StreamView stream) {
  require_narrow("unit_states", shape);
  const periplus::cuda::CurrentDevice current(stream.device().index);
  if (runs_portable(shape, block, {block.k, block.v}, stream)) return portable::unit_states(shape, block, elements, stream);
  plain::unit_states(shape, block, elements, stream);
}

void unit_states_backward(const LinearShape& shape, const LinearBlock& block, ConstTensorView dout, TensorView elements,
                          StreamView stream) {
  require_narrow("unit_states_backward", shape);
  const periplus::cuda::CurrentDevice current(stream.device().index);
  const ConstTensorView keys = shape.transition == Transition::dense ? block.k : ConstTensorView{};
  if (runs_portable(shape, block, {block.q, keys, dout}, stream))
    return portable::unit_states_backward(shape, block, dout, elements, stream);
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
  if (runs_portable(shape, block, {block.q, block.k, block.v, out}, stream))
    return portable::unit_apply(shape, block, incoming, out, stream);
  plain::unit_apply(shape, block, incoming, out, stream);
}

void unit_apply_backward(const LinearShape& shape, const LinearBlock& block, ConstTensorView incoming, ConstTensorView dout,
                         ConstTensorView doutgoing, const LinearGradients& gradients, StreamView stream) {
  require_narrow("unit_apply_backward", shape);
  const periplus::cuda::CurrentDevice current(stream.device().index);
  const auto& [dq, dk, dv, dlog_decay, dbeta] = gradients;
  if (runs_portable(shape, block, {block.q, block.k, block.v, dout, dq, dk, dv}, stream))
    return portable::unit_apply_backward(shape, block, incoming, dout, doutgoing, gradients, stream);
  plain::unit_apply_backward(shape, block, incoming, dout, doutgoing, gradients, stream);
}

}  // namespace periplus::kernels::cuda
