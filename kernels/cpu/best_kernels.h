#pragma once

#include <optional>
#include <type_traits>

#include "kernels/cpu/kernel_set.h"
#include "kernels/cpu_level.h"

/// Kernels of the level in use. Only the function of that level is called: it may itself contain the level's instructions.
namespace periplus::kernels::cpu {

template <class S, auto scalar, auto avx2, auto avx512>
auto best_kernels() {
  const auto set = [] {
    switch (cpu_level()) {
#if defined(__x86_64__)
      case CpuLevel::amx:
      case CpuLevel::avx512_bf16:
      case CpuLevel::avx512:
        return avx512();
      case CpuLevel::avx2:
        return avx2();
#endif
      default:
        return scalar();
    }
  }();
  if constexpr (std::is_same_v<S, float>) return set.f32;
  if constexpr (std::is_same_v<S, bfloat16>) return set.bf16;
  if constexpr (std::is_same_v<S, float16>) return set.f16;
}

/// Those on matrix tiles, which are of bf16, if the level has any.
template <auto emulated, auto dot, auto amx>
auto matrix_kernels() -> std::optional<decltype(emulated())> {
  switch (cpu_level()) {
    case CpuLevel::emulated_amx:
      return emulated();
#if defined(__x86_64__)
    case CpuLevel::avx512_bf16:
      return dot();
    case CpuLevel::amx:
      return amx();
#endif
    default:
      return std::nullopt;
  }
}

}  // namespace periplus::kernels::cpu
