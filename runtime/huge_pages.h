#pragma once

#include <cstddef>

namespace periplus {

inline constexpr std::size_t kHugePageBytes = std::size_t{2} << 20;

/// Host memory that begins at a huge page and lies in such pages where the system has them; for std::free. Null if there is none.
void* allocate_in_huge_pages(std::size_t bytes) noexcept;

}  // namespace periplus
