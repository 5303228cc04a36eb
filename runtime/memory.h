#pragma once

#include <atomic>
#include <cstddef>
#include <memory>

#include "runtime/device.h"

namespace periplus {

/// Counts the bytes that the tensors of one rank hold. Thread-safe. Shared by every Buffer allocated from it.
class MemoryAccount {
 public:
  std::size_t current_bytes() const noexcept { return current_.load(std::memory_order_relaxed); }
  std::size_t peak_bytes() const noexcept { return peak_.load(std::memory_order_relaxed); }

  void add(std::size_t bytes) noexcept;
  void subtract(std::size_t bytes) noexcept { current_.fetch_sub(bytes, std::memory_order_relaxed); }

 private:
  std::atomic<std::size_t> current_{0};
  std::atomic<std::size_t> peak_{0};
};

/// Where tensors come from: a device and the account they are counted in. A value; copies share the account.
class Memory {
 public:
  explicit Memory(Device device = {}) : device_(device), account_(std::make_shared<MemoryAccount>()) {}
  Device device() const noexcept { return device_; }
  MemoryAccount& account() const noexcept { return *account_; }
  const std::shared_ptr<MemoryAccount>& shared_account() const noexcept { return account_; }

 private:
  Device device_;
  std::shared_ptr<MemoryAccount> account_;
};

/// Owns `bytes` of 256-byte aligned memory, uninitialised. Move-only.
class Buffer {
 public:
  Buffer() = default;
  /// Throws DeviceError when the memory cannot be had; the message says how much was asked for and what is in use;
  /// BackendUnavailable for a device that this build or machine lacks.
  Buffer(std::size_t bytes, const Memory& memory);
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Buffer();

  std::byte* data() const noexcept { return data_; }
  std::size_t bytes() const noexcept { return bytes_; }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(account_, other.account_);
    std::swap(device_, other.device_);
  }
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
  std::shared_ptr<MemoryAccount> account_;
  Device device_;
};

}  // namespace periplus
