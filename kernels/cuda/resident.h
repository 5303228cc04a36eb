#pragma once

#include <cstddef>
#include <span>

#include "runtime/device.h"

namespace periplus::kernels::cuda {

/// A copy of `bytes` in device memory, made on first use and kept for later calls with equal bytes on the same stream: a training step
/// says the same in every layer. Never empty, even if `bytes` is.
const std::byte* resident_bytes(std::span<const std::byte> bytes, StreamView stream);

template <class T>
const T* resident(std::span<const T> values, StreamView stream) {
  return reinterpret_cast<const T*>(resident_bytes(std::as_bytes(values), stream));
}

}  // namespace periplus::kernels::cuda
