#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#include <sys/mman.h>

/// Scratch memory of a kernel's team.
namespace periplus::kernels::cpu {

inline constexpr std::int64_t kPageBytes = 4096;
inline constexpr std::int64_t kHugePageBytes = std::int64_t{2} << 20;

/// Scratch of one thread in whole pages: threads must not share cache lines.
inline std::int64_t whole_pages(std::int64_t bytes) { return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes; }

/// At least `bytes` bytes, aligned to a huge page, not initialised, kept by the calling thread for its next kernel. Called by the
/// thread that starts a team, so that a failed allocation is thrown there; the memory of an earlier call is gone.
inline std::byte* team_scratch(std::int64_t bytes) {
  struct Free {
    void operator()(std::byte* data) const noexcept { ::operator delete[](data, std::align_val_t{kHugePageBytes}); }
  };
  thread_local std::unique_ptr<std::byte[], Free> data;
  thread_local std::int64_t size = 0;
  if (bytes > size) {
    data.reset();
    size = 0;
    data.reset(static_cast<std::byte*>(::operator new[](static_cast<std::size_t>(bytes), std::align_val_t{kHugePageBytes})));
    size = bytes;
    // Contiguous memory does not crowd sets of the second-level cache: 3 % of attention's time.
    madvise(data.get(), static_cast<std::size_t>(bytes), MADV_HUGEPAGE);
  }
  return data.get();
}

}  // namespace periplus::kernels::cpu
