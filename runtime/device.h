#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace periplus {

enum class DeviceKind : std::uint8_t { cpu, cuda };

struct Device {
  DeviceKind kind = DeviceKind::cpu;
  int index = 0;
  friend bool operator==(const Device&, const Device&) = default;
};

std::string to_string(Device device);

/// Order in which work happens on a device. A CPU stream runs work at once on the calling thread and its OpenMP team, so
/// "enqueue" means "do". While a CPU kernel computes it calls the stream's progress hook from its thread 0 (the thread
/// that called the kernel) at least every 20 us of work, so that messages move while kernels compute.
class Stream {
 public:
  Stream() = default;
  explicit Stream(std::function<void()> progress) : progress_(std::move(progress)) {}

  Device device() const noexcept { return device_; }
  /// Cheap when no hook is set. Call it only from the thread that entered the kernel.
  void progress() const {
    if (progress_) progress_();
  }

 private:
  Device device_;
  std::function<void()> progress_;
};

/// Non-owning; the Stream must outlive every call it is passed to.
class StreamView {
 public:
  StreamView(const Stream& stream) noexcept : stream_(&stream) {}  // implicit: a view of an owner, like string_view
  Device device() const noexcept { return stream_->device(); }
  void progress() const { stream_->progress(); }

 private:
  const Stream* stream_;
};

}  // namespace periplus
