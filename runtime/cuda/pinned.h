#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>

#include "runtime/cuda/device.h"

namespace periplus::cuda {

/// Page-locked host memory, which copies read and write while the host goes on. Move-only. Whoever frees it has waited for them.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  explicit PinnedBuffer(std::size_t bytes) : data_(allocate_pinned(std::max<std::size_t>(bytes, 1))) {}
  std::byte* data() const noexcept { return data_.get(); }

 private:
  struct Release {
    void operator()(std::byte* data) const noexcept { release_pinned(data); }
  };
  std::unique_ptr<std::byte, Release> data_;
};

}  // namespace periplus::cuda
