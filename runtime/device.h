#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace periplus {

enum class DeviceKind : std::uint8_t { cpu, cuda };

struct Device {
  DeviceKind kind = DeviceKind::cpu;
  int index = 0;
  friend bool operator==(const Device&, const Device&) = default;
};

std::string to_string(Device device);

/// Order in which work happens on a device. A value; copies are the same stream.
/// A CPU stream runs work at once on the calling thread and its OpenMP team, so "enqueue" means "do". While a CPU kernel
/// computes it calls the stream's progress hook from its thread 0 (the thread that called the kernel) at least every 20 us
/// of work, so that messages move while kernels compute.
/// A CUDA stream (runtime/cuda/device.h makes them) runs work later: operands must stay alive until the stream has passed.
class Stream {
 public:
  Stream() = default;
  explicit Stream(std::function<void()> progress) : progress_(std::move(progress)) {}
  /// A stream of a CUDA device: its cudaStream_t, null for the device's default stream. The pointer's deleter, if it has
  /// one, destroys the stream; a caller's own stream comes with an empty deleter.
  Stream(Device device, std::shared_ptr<void> native) : device_(device), native_(std::move(native)) {}

  Device device() const noexcept { return device_; }
  void* native() const noexcept { return native_.get(); }
  /// Cheap when no hook is set. Call it only from the thread that entered the kernel.
  void progress() const {
    if (progress_) progress_();
  }

 private:
  Device device_;
  std::function<void()> progress_;
  std::shared_ptr<void> native_;
};

/// Non-owning; the Stream must outlive every call it is passed to.
class StreamView {
 public:
  StreamView(const Stream& stream) noexcept : stream_(&stream) {}  // implicit: a view of an owner, like string_view
  Device device() const noexcept { return stream_->device(); }
  void* native() const noexcept { return stream_->native(); }
  void progress() const { stream_->progress(); }

 private:
  const Stream* stream_;
};

}  // namespace periplus
