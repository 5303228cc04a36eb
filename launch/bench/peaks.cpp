#include "launch/bench/peaks.h"

#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>

#include <fmt/format.h>
#include <omp.h>

#include "kernels/cpu_level.h"
#include "runtime/dtype.h"
#include "runtime/error.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace periplus::launch::bench {
namespace {

constexpr int kFmaRounds = 200000;

using Vec4 = float __attribute__((vector_size(16)));
using Vec8 = float __attribute__((vector_size(32)));
using Vec16 = float __attribute__((vector_size(64)));

// Compiled for each level by being inlined there; enough independent chains to hide the latency, few enough to stay in
// registers.
template <class Vec, int kChains>
[[gnu::always_inline]] inline float multiply_add(int rounds, float seed) {
  constexpr int kLanes = sizeof(Vec) / sizeof(float);
  constexpr int kFactors = 4;
  Vec sum[kChains], factor[kFactors], term = {};
  const auto draw = [&] { return seed = seed * 9301.7f - static_cast<float>(static_cast<int>(seed * 9301.7f)); };
  for (int i = 0; i < kLanes; ++i) {
    for (Vec& vector : sum) vector[i] = draw();
    for (Vec& vector : factor) vector[i] = draw() - 0.5f;
    term[i] = draw();
  }
  for (int i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) sum[c] = sum[c] * factor[c % kFactors] + term;
    const Vec first = factor[0];  // else every chain would settle at a fixed point
    for (int f = 0; f + 1 < kFactors; ++f) factor[f] = factor[f + 1];
    factor[kFactors - 1] = first;
  }
  Vec all = {};
  for (const Vec& vector : sum) all += vector;
  return all[0];
}

struct Loop {
  float (*run)(int rounds, float seed);
  int lanes, chains;
};

float fma_scalar(int rounds, float seed) { return multiply_add<Vec4, 8>(rounds, seed); }
#if defined(__x86_64__)
[[gnu::target("avx2,fma")]] float fma_avx2(int rounds, float seed) { return multiply_add<Vec8, 10>(rounds, seed); }
[[gnu::target("avx512f,avx512vl,avx512dq,fma,prefer-vector-width=512")]] float fma_avx512(int rounds, float seed) {
  return multiply_add<Vec16, 12>(rounds, seed);
}
#endif

Loop fma_loop() {
#if defined(__x86_64__)
  if (kernels::cpu_level() >= kernels::CpuLevel::avx512) return {fma_avx512, 16, 12};
  if (kernels::cpu_level() == kernels::CpuLevel::avx2) return {fma_avx2, 8, 10};
#endif
  return {fma_scalar, 4, 8};
}

constexpr int kTileSteps = 4, kTileRounds = 2800;
constexpr double kTileFlop = 2.0 * 16 * 16 * 32;

#if defined(__x86_64__)

constexpr int kDotChains = 12;

[[gnu::target("avx512f,avx512bf16")]] float dot_products(int rounds) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  const auto draw = [&] {
    std::array<std::uint16_t, 32> values;
    for (std::uint16_t& value : values) value = bfloat16(normal(random)).bits;
    return values;
  };
  std::array<std::array<std::uint16_t, 32>, 4> operands = {draw(), draw(), draw(), draw()};
  __m512bh factor[4];
  std::memcpy(factor, operands.data(), sizeof factor);
  __m512 sum[kDotChains] = {};
  for (int i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kDotChains; ++c) sum[c] = _mm512_dpbf16_ps(sum[c], factor[c % 4], factor[c / 4]);
    const __m512bh first = factor[0];
    for (int f = 0; f < 3; ++f) factor[f] = factor[f + 1];
    factor[3] = first;
  }
  for (int c = 1; c < kDotChains; ++c) sum[0] += sum[c];
  return sum[0][0];
}

struct alignas(64) Tiles {
  std::array<std::array<std::uint16_t, 512>, 4 * kTileSteps> tile;
};

const Tiles& random_tiles() {
  static const Tiles tiles = [] {
    Tiles made;
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (auto& tile : made.tile) {
      for (std::uint16_t& value : tile) value = bfloat16(normal(random)).bits;
    }
    return made;
  }();
  return tiles;
}

struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

[[gnu::target("amx-tile,amx-bf16,avx512f")]] float tile_products(const Tiles& operands) {
  const TileConfig config;
  asm volatile("" ::: "memory");  // g++ 12 takes the stores into the configuration for dead ones
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int round = 0; round < kTileRounds; ++round) {
    for (int step = 0; step < kTileSteps; ++step) {
      const auto* tile = &operands.tile[4 * static_cast<std::size_t>(step)];
      _tile_loadd(4, tile[0].data(), 64);
      _tile_loadd(5, tile[1].data(), 64);
      _tile_loadd(6, tile[2].data(), 64);
      _tile_loadd(7, tile[3].data(), 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  alignas(64) float sum[256];
  _tile_stored(0, sum, 64);
  _tile_release();
  return sum[0];
}

#endif

struct Done {
  double flop;
  float value;  ///< Must be used, or the compiler drops the work.
};

Done run_on_this_thread(Unit unit) {
#if defined(__x86_64__)
  if (unit == Unit::dot) return {4.0 * 16 * kDotChains * kFmaRounds, dot_products(kFmaRounds)};
  if (unit == Unit::amx) return {kTileFlop * kTileRounds * kTileSteps * 4, tile_products(random_tiles())};
#endif
  const Loop loop = fma_loop();
  return {2.0 * kFmaRounds * loop.lanes * loop.chains, loop.run(kFmaRounds, 0.5f)};
}

}  // namespace

std::string_view to_string(Unit unit) noexcept {
  constexpr std::string_view kNames[] = {"FMA", "DOT", "AMX"};
  return kNames[static_cast<int>(unit)];
}

bool has_unit(Unit unit) noexcept {
  const kernels::CpuLevel best = kernels::best_cpu_level();
  return unit == Unit::fma || best >= (unit == Unit::amx ? kernels::CpuLevel::amx : kernels::CpuLevel::avx512_bf16);
}

double measure_peak(Unit unit, int threads) {
  if (!has_unit(unit)) throw InternalError(fmt::format("measure_peak: this machine has no {} or does not permit it", to_string(unit)));
#if defined(__x86_64__)
  random_tiles();
#endif
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  double flop = 0;
  float value = 0;
#pragma omp parallel num_threads(threads) reduction(+ : flop, value)
  {
    const Done done = run_on_this_thread(unit);
    flop += done.flop;
    value += done.value;
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return std::isnan(value) ? 0 : flop / seconds * 1e-9;
}

}  // namespace periplus::launch::bench
