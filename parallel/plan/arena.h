#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace periplus::plan {

inline constexpr std::int64_t kArenaAlignment = 256;

/// Places blocks in one workspace so that blocks that may live at the same time never share bytes, and returns its size.
/// `apart(a, b)` says that a and b never live at the same time. Greedy, largest first, lowest fitting offset.
/// Memory is reused only where the program already orders the uses; placement never adds an order (docs/architecture.md).
std::int64_t place_blocks(std::span<const std::int64_t> bytes, const std::function<bool(int, int)>& apart, std::span<std::int64_t> offsets);

}  // namespace periplus::plan
