#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

namespace periplus::plan {

inline constexpr std::int64_t kArenaAlignment = 256;

/// Places blocks in one workspace so that blocks that may live at the same time never share bytes, and returns its size.
/// `apart(a, b)` says that a and b never live at the same time. Greedy, largest first, lowest fitting offset.
/// Memory is reused only where the program already orders the uses; placement never adds an order (docs/architecture.md).
template <class Apart>
std::int64_t place_blocks(std::span<const std::int64_t> bytes, const Apart& apart, std::span<std::int64_t> offsets) {
  std::vector<int> by_size(bytes.size());
  std::iota(by_size.begin(), by_size.end(), 0);
  std::ranges::sort(by_size, {}, [&](int block) { return std::pair(-bytes[static_cast<std::size_t>(block)], block); });
  const auto aligned = [](std::int64_t n) { return (n + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment; };

  std::int64_t total = 0;
  std::vector<std::pair<std::int64_t, std::int64_t>> taken;
  for (auto block = by_size.begin(); block != by_size.end(); ++block) {
    const std::int64_t size = aligned(bytes[static_cast<std::size_t>(*block)]);
    if (size == 0) {  // all that follow are empty too
      std::for_each(block, by_size.end(), [&](int empty) { offsets[static_cast<std::size_t>(empty)] = 0; });
      break;
    }
    taken.clear();
    for (auto other = by_size.begin(); other != block; ++other) {
      if (apart(*block, *other)) continue;
      const std::int64_t begin = offsets[static_cast<std::size_t>(*other)];
      taken.emplace_back(begin, begin + aligned(bytes[static_cast<std::size_t>(*other)]));
    }
    std::ranges::sort(taken);
    std::int64_t offset = 0;
    for (const auto& [begin, end] : taken) {
      if (offset + size <= begin) break;
      offset = std::max(offset, end);
    }
    offsets[static_cast<std::size_t>(*block)] = offset;
    total = std::max(total, offset + size);
  }
  return total;
}

}  // namespace periplus::plan
