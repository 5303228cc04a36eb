#pragma once

#include <cstddef>

namespace periplus::comm {

/// Largest piece of a message that one MPI call moves: keeps counts far below INT_MAX, and keeps short the copy that a
/// progress call makes in the middle of a kernel.
inline constexpr std::size_t kFragmentBytes = std::size_t{1} << 20;

struct Fragment {
  std::size_t offset;
  int bytes;
};

/// Fragments that a message of `bytes` travels as; 0 for an empty one.
constexpr std::size_t fragment_count(std::size_t bytes) noexcept { return bytes / kFragmentBytes + (bytes % kFragmentBytes != 0 ? 1 : 0); }

/// The index-th fragment. All are full except possibly the last; both ends split alike, so sizes need not travel.
/// Errors: InternalError if there is no such fragment.
Fragment fragment(std::size_t bytes, std::size_t index);

}  // namespace periplus::comm
