#pragma once

#include <cstddef>
#include <exception>
#include <string>

#include "runtime/device.h"

/// CUDA devices, without a vendor header. A build without CUDA has the same functions: there is no device then, and what
/// needs one throws BackendUnavailable naming the CMake option.
namespace periplus::cuda {

/// Why no CUDA device can be used, in one sentence ("no NVIDIA driver is installed", ...); empty if one can. Never throws:
/// a missing driver means "use the CPU".
std::string unavailable_reason() noexcept;
/// Usable devices; 0 without a driver.
int device_count() noexcept;

struct DeviceProperties {
  std::string name;
  std::string pci_bus_id;  ///< "0000:18:00.0"
  int major = 0, minor = 0;
  int multiprocessors = 0;
  int shared_bytes_per_block = 0;  ///< The largest that a kernel can ask for.
  std::size_t memory_bytes = 0, free_bytes = 0, l2_bytes = 0;
};
/// Errors: InvalidArgument for an index that does not exist, BackendUnavailable without devices.
DeviceProperties properties(int index);
/// The same, asked once: `free_bytes` is that of then.
const DeviceProperties& known_properties(int index);
/// As 13000 for 13.0; 0 where there is none.
int driver_version() noexcept;
int toolkit_version() noexcept;

/// 256-byte aligned device memory; nullptr if it cannot be had. Never initialised.
std::byte* allocate(int index, std::size_t bytes);
/// Waits for the device's work first, as cudaFree does.
void release(int index, std::byte* data) noexcept;
/// Page-locked host memory, which copies can read while the host goes on; throws DeviceError.
std::byte* allocate_pinned(std::size_t bytes);
void release_pinned(std::byte* data) noexcept;

/// Makes a device current for the calling thread while it lives: kernels are launched on streams of the current device only.
class CurrentDevice {
 public:
  explicit CurrentDevice(int index);
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;
  ~CurrentDevice();

 private:
  int before_ = 0;
};

enum class Priority { normal, high };
/// A stream of its own that does not wait for the default stream. Exchanges use high priority.
Stream make_stream(int index, Priority priority = Priority::normal);
/// Blocks the host until the stream has passed; throws DeviceError with what the device says. Does nothing on a CPU stream.
void synchronize(StreamView stream);
/// The same for destructors: of a device that has failed, whoever uses it next finds out.
inline void drain(StreamView stream) noexcept {
  try {
    synchronize(stream);
  } catch (const std::exception&) {
  }
}

/// Bytes between any two of host (pinned, else the host waits) and device, in stream order.
void copy_bytes(void* destination, const void* source, std::size_t bytes, StreamView stream);
void fill_bytes(void* destination, unsigned char value, std::size_t bytes, StreamView stream);

/// A point in a stream. Move-only.
class Event {
 public:
  Event() = default;
  explicit Event(int index, bool with_time = false);
  Event(Event&& other) noexcept;
  Event& operator=(Event&& other) noexcept;
  ~Event();

  /// The point that `stream` has reached so far.
  void record(StreamView stream);
  /// Work enqueued on `stream` from now on starts after the recorded point. The host goes on.
  void order(StreamView stream) const;
  bool done() const;
  void wait() const;
  /// From `begin` to this one; both made with time, recorded and done.
  double seconds_since(const Event& begin) const;

 private:
  void* native_ = nullptr;
};

}  // namespace periplus::cuda
