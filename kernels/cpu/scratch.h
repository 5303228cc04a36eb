#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "runtime/huge_pages.h"

/// Scratch memory of a kernel's team.
namespace periplus::kernels::cpu {

inline constexpr std::int64_t kPageBytes = 4096;

/// Scratch of one thread in whole pages: threads must not share cache lines.
inline std::int64_t whole_pages(std::int64_t bytes) { return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes; }

/// At least `bytes` bytes, aligned to a huge page, not initialised, kept by the calling thread for its next kernel. Called by the
/// thread that starts a team, so that a failed allocation is thrown there; the memory of an earlier call is gone.
inline std::byte* team_scratch(std::int64_t bytes) {
  struct Free {
    void operator()(std::byte* data) const noexcept { std::free(data); }
  };
  thread_local std::unique_ptr<std::byte[], Free> data;
  thread_local std::int64_t size = 0;
  if (bytes > size) {
    data.reset();
    size = 0;
    // Contiguous memory does not crowd sets of the second-level cache: 3 % of attention's time.
    data.reset(static_cast<std::byte*>(allocate_in_huge_pages(static_cast<std::size_t>(bytes))));
    if (data == nullptr) throw std::bad_alloc();
    size = bytes;
  }
  return data.get();
}

}  // namespace periplus::kernels::cpu
