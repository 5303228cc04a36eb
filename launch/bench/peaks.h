#pragma once

#include <string_view>

/// What this machine can do at most, measured with random data: with constants the same instructions run up to 1.7 times
/// as fast, because they draw less power.
namespace periplus::launch::bench {

enum class Unit { fma, dot, amx };
/// "FMA", "DOT", "AMX"
std::string_view to_string(Unit unit) noexcept;
/// Whether this machine can run and permits it.
bool has_unit(Unit unit) noexcept;

/// GFLOP/s of `threads` threads together during 0.3 to 0.6 ms. `fma`: f32 multiply-add from registers with the widest
/// instructions of kernels::cpu_level(). `dot`: dot products of bf16 pairs from registers; `amx`: bf16 tile products, two by two blocked,
/// operands loaded from L1 (0.99 of what registers give). InternalError without the unit.
double measure_peak(Unit unit, int threads);

}  // namespace periplus::launch::bench
