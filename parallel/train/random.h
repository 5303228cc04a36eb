// Random numbers whose values do not depend on the standard library's distributions, so that runs repeat anywhere.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>
#include <random>
#include <span>
#include <string_view>
#include <utility>

#include "runtime/file.h"

namespace periplus::train {

/// An engine of its own for every (seed, purpose).
inline std::mt19937_64 engine_for(std::uint64_t seed, std::string_view purpose) { return std::mt19937_64(hash64(purpose, seed)); }

/// Uniform in [0, 1).
inline double uniform(std::mt19937_64& engine) { return static_cast<double>(engine() >> 11) * 0x1p-53; }

/// Standard normal (Box and Muller; one of the pair is dropped to keep the function free of state).
inline double normal(std::mt19937_64& engine) {
  const double radius = std::sqrt(-2 * std::log(1 - uniform(engine)));
  return radius * std::cos(2 * std::numbers::pi * uniform(engine));
}

/// Fisher and Yates.
template <class T>
void shuffle(std::span<T> items, std::mt19937_64& engine) {
  for (std::size_t left = items.size(); left > 1; --left) {
    const auto pick = static_cast<std::size_t>(uniform(engine) * static_cast<double>(left));
    std::swap(items[left - 1], items[pick]);
  }
}

}  // namespace periplus::train
