#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <utility>

#include "runtime/device.h"

namespace periplus::kernels::cuda {

/// A copy of `bytes` in device memory, made on first use and kept for later calls with equal bytes on the same stream. To be held until the
/// work that reads it is enqueued (stream_cache.h). Never null, even if `bytes` is empty.
std::shared_ptr<const std::byte> resident_bytes(std::span<const std::byte> bytes, StreamView stream);

template <class T>
std::shared_ptr<const T> resident(std::span<const T> values, StreamView stream) {
  auto bytes = resident_bytes(std::as_bytes(values), stream);
  const T* const data = reinterpret_cast<const T*>(bytes.get());
  return {std::move(bytes), data};
}

}  // namespace periplus::kernels::cuda
