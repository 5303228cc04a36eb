#include <atomic>
#include <cstdlib>
#include <string_view>

#include <fmt/format.h>

#include "kernels/attention.h"
#include "runtime/error.h"

namespace periplus::kernels {
namespace {

constexpr std::string_view kNames[] = {"scalar", "avx2", "avx512"};

std::string_view name(CpuLevel level) { return kNames[static_cast<int>(level)]; }

// An unknown or unavailable name leaves the best level: the variable can only lower it.
CpuLevel initial_level() noexcept {
  const CpuLevel best = best_cpu_level();
  const char* wanted = std::getenv("PERIPLUS_CPU_LEVEL");
  if (wanted == nullptr) return best;
  for (CpuLevel level : {CpuLevel::scalar, CpuLevel::avx2, CpuLevel::avx512}) {
    if (name(level) == wanted) return std::min(level, best);
  }
  return best;
}

std::atomic<CpuLevel>& current_level() noexcept {
  static std::atomic<CpuLevel> level{initial_level()};
  return level;
}

}  // namespace

CpuLevel best_cpu_level() noexcept {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return avx512 ? CpuLevel::avx512 : avx2 ? CpuLevel::avx2 : CpuLevel::scalar;
#else
  return CpuLevel::scalar;
#endif
}

CpuLevel cpu_level() noexcept { return current_level().load(std::memory_order_relaxed); }

void set_cpu_level(CpuLevel level) {
  if (level > best_cpu_level()) {
    throw InvalidArgument(fmt::format("set_cpu_level: this CPU lacks {}; the best level here is {}", name(level), name(best_cpu_level())));
  }
  current_level().store(level, std::memory_order_relaxed);
}

}  // namespace periplus::kernels
