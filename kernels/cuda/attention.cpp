// Which rung runs a call.
#include "kernels/cuda/attention.h"

#include "kernels/cuda/rungs.h"
#include "runtime/cuda/device.h"

namespace periplus::kernels::cuda {
namespace {

template <class Call>
Rung rung_of(const Call& call, StreamView stream) {
  const Rung most = best_rung(stream.device().index);
  if (most >= Rung::hopper && hopper::supports(call)) return Rung::hopper;
  if (most >= Rung::portable && portable::supports(call)) return Rung::portable;
  return Rung::plain;
}

thread_local int reserved = 0;

}  // namespace

void set_reserved_multiprocessors(int count) noexcept { reserved = count; }
int reserved_multiprocessors() noexcept { return reserved; }

void attend(const AttentionShape& shape, const AttentionBlock& block, const AttentionState& state, Update update, StreamView stream) {
  const ForwardCall call{shape, block, state, update};
  const periplus::cuda::CurrentDevice current(stream.device().index);
  switch (rung_of(call, stream)) {
    case Rung::plain:
      return plain::attend(call, stream);
    case Rung::portable:
      return portable::attend(call, stream);
    case Rung::hopper:
      return hopper::attend(call, stream);
  }
}

void attend_backward(const AttentionShape& shape, const AttentionBlock& block, ConstTensorView dout, ConstTensorView lse,
                     ConstTensorView delta, const AttentionGradients& gradients, StreamView stream) {
  const BackwardCall call{shape, block, dout, lse, delta, gradients};
  const periplus::cuda::CurrentDevice current(stream.device().index);
  switch (rung_of(call, stream)) {
    case Rung::plain:
      return plain::attend_backward(call, stream);
    case Rung::portable:
      return portable::attend_backward(call, stream);
    case Rung::hopper:
      return hopper::attend_backward(call, stream);
  }
}

}  // namespace periplus::kernels::cuda
