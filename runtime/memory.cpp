#include "runtime/memory.h"

#include <cstdlib>
#include <limits>

#include <fmt/format.h>

#include "runtime/cuda/device.h"
#include "runtime/error.h"
#include "runtime/huge_pages.h"

namespace periplus {
namespace {

constexpr std::size_t kAlignment = 256;

std::byte* allocate_host(std::size_t bytes) {
  // aligned_alloc wants a multiple of the alignment; a size that cannot be rounded up cannot be had either.
  if (bytes > std::numeric_limits<std::size_t>::max() / 2) return nullptr;
  const std::size_t whole = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  // Kernels read many rows at once, and of long sequences each lies in a small page of its own, whose address must be looked up.
  return static_cast<std::byte*>(bytes >= 2 * kHugePageBytes ? allocate_in_huge_pages(whole) : std::aligned_alloc(kAlignment, whole));
}

}  // namespace

void MemoryAccount::add(std::size_t bytes) noexcept {
  const std::size_t now = current_.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  std::size_t peak = peak_.load(std::memory_order_relaxed);
  while (peak < now && !peak_.compare_exchange_weak(peak, now, std::memory_order_relaxed)) {
  }
}

Buffer::Buffer(std::size_t bytes, const Memory& memory) {
  const Device device = memory.device();
  if (bytes == 0) return;
  std::byte* const data = device.kind == DeviceKind::cuda ? cuda::allocate(device.index, bytes) : allocate_host(bytes);
  if (data == nullptr) {
    throw DeviceError(fmt::format("memory: cannot allocate {} bytes on {}; {} bytes are in use by this rank (peak {})", bytes,
                                  to_string(device), memory.account().current_bytes(), memory.account().peak_bytes()));
  }
  data_ = data;
  bytes_ = bytes;
  device_ = device;
  account_ = memory.shared_account();
  account_->add(bytes);
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  device_.kind == DeviceKind::cuda ? cuda::release(device_.index, data_) : std::free(data_);
  account_->subtract(bytes_);
}

}  // namespace periplus
