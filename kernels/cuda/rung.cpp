#include "kernels/cuda/rung.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>

#include <fmt/format.h>

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
Rung best_rung(int device) { return std::min(highest_rung(), best_of_device(device)); }

}  // namespace periplus::kernels::cuda
