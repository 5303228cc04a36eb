#pragma once

#include <string_view>

/// Implementations of the same operation for devices of rising capability.
namespace periplus::kernels::cuda {

enum class Rung { plain, portable, hopper };
inline constexpr Rung kRungs[] = {Rung::plain, Rung::portable, Rung::hopper};
std::string_view to_string(Rung rung) noexcept;
/// Nothing above this rung is used; PERIPLUS_CUDA_RUNG=plain|portable|hopper in the environment sets it at start.
Rung highest_rung() noexcept;
void set_highest_rung(Rung rung) noexcept;
/// The best rung that the device can run and highest_rung() allows.
Rung best_rung(int device);

}  // namespace periplus::kernels::cuda
