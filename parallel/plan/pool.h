#pragma once

#include <span>
#include <vector>

#include "parallel/plan/plan.h"

namespace periplus::plan {

/// Puts items at the end of a program's pool and says where.
template <class T>
Range append(std::vector<T>& pool, std::span<const T> items) {
  const Range range{static_cast<std::uint32_t>(pool.size()), static_cast<std::uint32_t>(items.size())};
  pool.insert(pool.end(), items.begin(), items.end());
  return range;
}

}  // namespace periplus::plan
