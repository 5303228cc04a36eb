#include "runtime/device_tensor.h"

#include <string_view>

#include <fmt/format.h>

#include "runtime/cuda/device.h"
#include "runtime/error.h"

namespace periplus {
namespace {

bool on_cpu(Device device) { return device.kind == DeviceKind::cpu; }

void require_contiguous(std::string_view op, const TensorView& view, StreamView stream) {
  if (view.contiguous()) return;
  throw InvalidArgument(fmt::format("{}: shape {} with strides {} on {} is not contiguous; use kernels on its slices", op,
                                    to_string(view.shape()), to_string(view.strides()), to_string(stream.device())));
}

}  // namespace

void fill_zero(TensorView tensor, StreamView stream) {
  if (on_cpu(stream.device())) return fill_zero(tensor);
  require_contiguous("fill_zero", tensor, stream);
  cuda::fill_bytes(tensor.bytes(), 0, tensor.size_bytes(), stream);
}

void upload(ConstTensorView host, TensorView destination, StreamView stream) {
  if (on_cpu(stream.device())) return copy(host, destination);
  require_contiguous("upload", destination, stream);
  const Tensor staged(destination.shape(), destination.dtype(), Memory());
  copy(host, staged);
  cuda::copy_bytes(destination.bytes(), staged.view().bytes(), destination.size_bytes(), stream);
  cuda::synchronize(stream);
}

Tensor to_device(ConstTensorView host, const Memory& memory) {
  const Device device = memory.device();
  return to_device(host, memory, on_cpu(device) ? Stream() : cuda::make_stream(device.index));
}

}  // namespace periplus
