#include "runtime/memory.h"

#include <cstdlib>
#include <limits>

#include <fmt/format.h>

#include "runtime/error.h"

namespace periplus {
namespace {

constexpr std::size_t kAlignment = 256;

}  // namespace

void MemoryAccount::add(std::size_t bytes) noexcept {
  const std::size_t now = current_.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  std::size_t peak = peak_.load(std::memory_order_relaxed);
  while (peak < now && !peak_.compare_exchange_weak(peak, now, std::memory_order_relaxed)) {
  }
}

Buffer::Buffer(std::size_t bytes, const Memory& memory) {
  if (memory.device().kind != DeviceKind::cpu) {
    throw BackendUnavailable(fmt::format("memory: this build has no memory on {}; use the cpu", to_string(memory.device())));
  }
  if (bytes == 0) return;
  // aligned_alloc wants a multiple of the alignment; a size that cannot be rounded up cannot be had either.
  const bool roundable = bytes <= std::numeric_limits<std::size_t>::max() / 2;
  const std::size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  void* const data = roundable ? std::aligned_alloc(kAlignment, rounded) : nullptr;
  if (data == nullptr) {
    throw DeviceError(fmt::format("memory: cannot allocate {} bytes on {}; {} bytes are in use by this rank (peak {})", bytes,
                                  to_string(memory.device()), memory.account().current_bytes(), memory.account().peak_bytes()));
  }
  data_ = static_cast<std::byte*>(data);
  bytes_ = bytes;
  account_ = memory.shared_account();
  account_->add(bytes);
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  std::free(data_);
  account_->subtract(bytes_);
}

}  // namespace periplus
