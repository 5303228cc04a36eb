#include "parallel/plan/arena.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace periplus::plan {

std::int64_t place_blocks(std::span<const std::int64_t> bytes, const std::function<bool(int, int)>& apart,
                          std::span<std::int64_t> offsets) {
  std::vector<int> by_size(bytes.size());
  std::iota(by_size.begin(), by_size.end(), 0);
  std::stable_sort(by_size.begin(), by_size.end(),
                   [&](int a, int b) { return bytes[static_cast<std::size_t>(a)] > bytes[static_cast<std::size_t>(b)]; });
  const auto aligned = [](std::int64_t n) { return (n + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment; };

  std::int64_t total = 0;
  std::vector<int> placed;
  std::vector<std::pair<std::int64_t, std::int64_t>> taken;
  for (const int block : by_size) {
    const std::int64_t size = aligned(bytes[static_cast<std::size_t>(block)]);
    taken.clear();
    for (const int other : placed) {
      if (apart(block, other)) continue;
      const std::int64_t begin = offsets[static_cast<std::size_t>(other)];
      taken.emplace_back(begin, begin + aligned(bytes[static_cast<std::size_t>(other)]));
    }
    std::sort(taken.begin(), taken.end());
    std::int64_t offset = 0;
    for (const auto& [begin, end] : taken) {
      if (offset + size <= begin) break;
      offset = std::max(offset, end);
    }
    offsets[static_cast<std::size_t>(block)] = offset;
    placed.push_back(block);
    total = std::max(total, offset + size);
  }
  return total;
}

}  // namespace periplus::plan
