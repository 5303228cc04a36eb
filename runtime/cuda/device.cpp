#include "runtime/cuda/device.h"

#include <utility>
#include <vector>

#include <cuda_runtime.h>
#include <fmt/format.h>

#include "runtime/cuda/check.h"
#include "runtime/error.h"

namespace periplus::cuda {
namespace {

cudaStream_t native(StreamView stream) { return static_cast<cudaStream_t>(stream.native()); }
cudaEvent_t native(void* event) { return static_cast<cudaEvent_t>(event); }

struct Found {
  int devices = 0;
  std::string reason;
};

/// Asked once: a driver does not appear while a process runs.
const Found& found() noexcept {
  static const Found result = [] {
    int driver = 0, devices = 0;
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return Found{0, "no NVIDIA driver is installed"};
    if (driver / 1000 < CUDART_VERSION / 1000) {
      return Found{0, fmt::format("the NVIDIA driver supports CUDA {}.{}, this build needs {}.{}; install a newer driver", driver / 1000,
                                  driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10)};
    }
    const cudaError_t status = cudaGetDeviceCount(&devices);
    if (status != cudaSuccess) {
      cudaGetLastError();  // else the next check would report it
      return Found{0, fmt::format("the NVIDIA driver offers no device: {}", cudaGetErrorString(status))};
    }
    if (devices == 0) return Found{0, "the NVIDIA driver offers no device; CUDA_VISIBLE_DEVICES may hide them"};
    return Found{devices, ""};
  }();
  return result;
}

}  // namespace

void check(cudaError_t status, std::string_view call, std::source_location place) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  throw DeviceError(fmt::format("{} failed: {} ({}); at {}:{}", call, cudaGetErrorString(status), cudaGetErrorName(status),
                                place.file_name(), place.line()));
}

CurrentDevice::CurrentDevice(int index) {
  check(cudaGetDevice(&before_), "cudaGetDevice");
  if (before_ != index) check(cudaSetDevice(index), "cudaSetDevice");
}
CurrentDevice::~CurrentDevice() { cudaSetDevice(before_); }

std::string unavailable_reason() noexcept { return found().reason; }
int device_count() noexcept { return found().devices; }

DeviceProperties properties(int index) {
  if (device_count() == 0) throw BackendUnavailable("cuda: " + unavailable_reason());
  if (index < 0 || index >= device_count()) {
    throw InvalidArgument(fmt::format("cuda: there is no device {}; the devices are 0 to {}", index, device_count() - 1));
  }
  cudaDeviceProp given{};
  check(cudaGetDeviceProperties(&given, index), "cudaGetDeviceProperties");
  DeviceProperties result;
  result.name = given.name;
  result.pci_bus_id = fmt::format("{:04x}:{:02x}:{:02x}.0", given.pciDomainID, given.pciBusID, given.pciDeviceID);
  result.major = given.major;
  result.minor = given.minor;
  result.multiprocessors = given.multiProcessorCount;
  result.shared_bytes_per_block = static_cast<int>(given.sharedMemPerBlockOptin);
  result.l2_bytes = static_cast<std::size_t>(given.l2CacheSize);
  const CurrentDevice current(index);
  check(cudaMemGetInfo(&result.free_bytes, &result.memory_bytes), "cudaMemGetInfo");
  return result;
}

const DeviceProperties& known_properties(int index) {
  static const std::vector<DeviceProperties> all = [] {
    std::vector<DeviceProperties> list;
    for (int device = 0; device < device_count(); ++device) list.push_back(properties(device));
    return list;
  }();
  if (index < 0 || index >= device_count()) properties(index);  // throws
  return all[static_cast<std::size_t>(index)];
}

int driver_version() noexcept {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}
int toolkit_version() noexcept { return CUDART_VERSION; }

Stream make_stream(int index, Priority priority) {
  if (device_count() == 0) throw BackendUnavailable("cuda: " + unavailable_reason());
  const CurrentDevice current(index);
  int lowest = 0, highest = 0;
  check(cudaDeviceGetStreamPriorityRange(&lowest, &highest), "cudaDeviceGetStreamPriorityRange");
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, priority == Priority::high ? highest : lowest),
        "cudaStreamCreateWithPriority");
  return Stream({DeviceKind::cuda, index},
                std::shared_ptr<void>(stream, [](void* owned) { cudaStreamDestroy(static_cast<cudaStream_t>(owned)); }));
}

void synchronize(StreamView stream) {
  if (stream.device().kind == DeviceKind::cuda) check(cudaStreamSynchronize(native(stream)), "cudaStreamSynchronize");
}

void copy_bytes(void* destination, const void* source, std::size_t bytes, StreamView stream) {
  if (bytes > 0) check(cudaMemcpyAsync(destination, source, bytes, cudaMemcpyDefault, native(stream)), "cudaMemcpyAsync");
}

void fill_bytes(void* destination, unsigned char value, std::size_t bytes, StreamView stream) {
  if (bytes > 0) check(cudaMemsetAsync(destination, value, bytes, native(stream)), "cudaMemsetAsync");
}

Event::Event(int index, bool with_time) {
  const CurrentDevice current(index);
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, with_time ? cudaEventDefault : cudaEventDisableTiming), "cudaEventCreate");
  native_ = event;
}
Event::Event(Event&& other) noexcept : native_(std::exchange(other.native_, nullptr)) {}
Event& Event::operator=(Event&& other) noexcept {
  std::swap(native_, other.native_);
  return *this;
}
Event::~Event() {
  if (native_ != nullptr) cudaEventDestroy(native(native_));
}

void Event::record(StreamView stream) { check(cudaEventRecord(native(native_), native(stream)), "cudaEventRecord"); }
void Event::order(StreamView stream) const { check(cudaStreamWaitEvent(native(stream), native(native_)), "cudaStreamWaitEvent"); }
bool Event::done() const {
  const cudaError_t status = cudaEventQuery(native(native_));
  if (status == cudaErrorNotReady) {
    cudaGetLastError();
    return false;
  }
  check(status, "cudaEventQuery");
  return true;
}
void Event::wait() const { check(cudaEventSynchronize(native(native_)), "cudaEventSynchronize"); }
double Event::seconds_since(const Event& begin) const {
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, native(begin.native_), native(native_)), "cudaEventElapsedTime");
  return static_cast<double>(milliseconds) * 1e-3;
}

}  // namespace periplus::cuda
