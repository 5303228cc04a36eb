#include <atomic>
#include <cstdlib>
#include <optional>

#include <fmt/format.h>

#include "kernels/cpu_level.h"
#include "runtime/error.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace periplus::kernels {
namespace {

/// Matrix tiles need the CPU's bf16 tile products and the system's leave to use the 8 KiB of tile state, which Linux grants
/// to a process on request.
bool may_use_amx() noexcept {
#if defined(__x86_64__) && defined(__linux__)
  constexpr unsigned kTileBits = 1u << 22 | 1u << 24;  // AMX-BF16, AMX-TILE
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 || (edx & kTileBits) != kTileBits) return false;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

CpuLevel find_best_level() noexcept {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (!avx2) return CpuLevel::scalar;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (!avx512) return CpuLevel::avx2;
  if (!__builtin_cpu_supports("avx512bf16")) return CpuLevel::avx512;
  return may_use_amx() ? CpuLevel::amx : CpuLevel::avx512_bf16;
#else
  return CpuLevel::scalar;
#endif
}

std::optional<CpuLevel> level_named(std::string_view name) noexcept {
  for (const CpuLevel level : kCpuLevels) {
    if (to_string(level) == name) return level;
  }
  return std::nullopt;
}

// An unknown or unavailable name leaves the best level: the variable can only lower it.
CpuLevel initial_level() noexcept {
  const char* wanted = std::getenv("PERIPLUS_CPU_LEVEL");
  const std::optional<CpuLevel> level = wanted == nullptr ? std::nullopt : level_named(wanted);
  return std::min(level.value_or(CpuLevel::amx), best_cpu_level());
}

std::atomic<CpuLevel>& current_level() noexcept {
  static std::atomic<CpuLevel> level{initial_level()};
  return level;
}

}  // namespace

std::string_view to_string(CpuLevel level) noexcept {
  constexpr std::string_view kNames[] = {"emulated_amx", "scalar", "avx2", "avx512", "avx512_bf16", "amx"};
  return kNames[static_cast<int>(level)];
}

CpuLevel best_cpu_level() noexcept {
  static const CpuLevel best = find_best_level();
  return best;
}

CpuLevel cpu_level() noexcept { return current_level().load(std::memory_order_relaxed); }

void set_cpu_level(CpuLevel level) {
  if (level > best_cpu_level()) {
    throw InvalidArgument(
        fmt::format("set_cpu_level: this CPU lacks {}; the best level here is {}", to_string(level), to_string(best_cpu_level())));
  }
  current_level().store(level, std::memory_order_relaxed);
}

}  // namespace periplus::kernels
