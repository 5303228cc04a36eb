// Which rung runs a call.
#include "kernels/cuda/attention.h"

#include <atomic>
#include <cstdlib>

#include <fmt/format.h>

#include "kernels/cuda/rungs.h"
#include "runtime/cuda/check.h"
#include "runtime/cuda/device.h"
#include "runtime/error.h"

namespace periplus::kernels::cuda {
namespace {

Rung rung_from_environment() {
  const char* const given = std::getenv("PERIPLUS_CUDA_RUNG");
  if (given == nullptr) return Rung::hopper;
  for (const Rung rung : kRungs) {
    if (given == to_string(rung)) return rung;
  }
  throw InvalidArgument(fmt::format("PERIPLUS_CUDA_RUNG is '{}'; it can be plain, portable or hopper", given));
}

std::atomic<Rung>& highest() {
  static std::atomic<Rung> rung{rung_from_environment()};
  return rung;
}

/// What the device can run.
Rung best_of_device(int index) {
  const periplus::cuda::DeviceProperties& properties = periplus::cuda::known_properties(index);
  // wgmma is code for 9.0 alone; newer devices run the portable rung.
  if (properties.major == 9 && properties.minor == 0) return Rung::hopper;
  return properties.major >= 8 ? Rung::portable : Rung::plain;
}

template <class Call>
Rung rung_of(const Call& call, StreamView stream) {
  const Rung most = std::min(highest_rung(), best_of_device(stream.device().index));
  if (most >= Rung::hopper && hopper::supports(call)) return Rung::hopper;
  if (most >= Rung::portable && portable::supports(call)) return Rung::portable;
  return Rung::plain;
}

thread_local int reserved = 0;

}  // namespace

std::string_view to_string(Rung rung) noexcept {
  switch (rung) {
    case Rung::plain:
      return "plain";
    case Rung::portable:
      return "portable";
    case Rung::hopper:
      return "hopper";
  }
  return "unknown rung";
}

Rung highest_rung() noexcept { return highest(); }
void set_highest_rung(Rung rung) noexcept { highest() = rung; }
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
