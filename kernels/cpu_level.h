#pragma once

#include <string_view>

/// Which instructions the kernels use on the CPU.
namespace periplus::kernels {

/// The vectorised CPU implementations, worst to best. `amx` computes bf16 attention and linear attention with
/// matrix tiles and everything else as avx512 does; `avx512_bf16` runs the same tile code with dot products of bf16 pairs, and
/// `emulated_amx` on any CPU, slowly, with plain loops: for tests. f64 always runs on kernels/reference.
enum class CpuLevel { emulated_amx, scalar, avx2, avx512, avx512_bf16, amx };
inline constexpr CpuLevel kCpuLevels[] = {CpuLevel::emulated_amx, CpuLevel::scalar,      CpuLevel::avx2,
                                          CpuLevel::avx512,       CpuLevel::avx512_bf16, CpuLevel::amx};
std::string_view to_string(CpuLevel level) noexcept;
/// Best level this CPU can run and the system permits.
CpuLevel best_cpu_level() noexcept;
/// Level in use; PERIPLUS_CPU_LEVEL=emulated_amx|scalar|avx2|avx512|avx512_bf16|amx in the environment lowers it.
CpuLevel cpu_level() noexcept;
/// Forces a level for tests and benchmarks. InvalidArgument if this CPU lacks it.
void set_cpu_level(CpuLevel level);

}  // namespace periplus::kernels
