// One emulated CUDA device: runtime/cuda on ordinary memory, where work is done as soon as it is asked for.
#include "runtime/cuda/device.h"

#include <cstdlib>
#include <cstring>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/hopper_linear.h"
#include "kernels/cuda/staging.h"
#include "runtime/cuda/check.h"
#include "runtime/cuda/events.h"
#include "runtime/error.h"

namespace periplus::cuda {

void check(cudaError_t status, std::string_view call, std::source_location) {
  if (status != cudaSuccess) throw DeviceError(std::string(call));
}
std::string unavailable_reason() noexcept { return {}; }
int device_count() noexcept { return 1; }
DeviceProperties properties(int index) { return known_properties(index); }
const DeviceProperties& known_properties(int) {
  // Few multiprocessors, so that small problems already fill them.
  static const DeviceProperties emulated{"emulated",           "0000:00:00.0",       8, 0, 3, 227 << 10, std::size_t{1} << 32,
                                         std::size_t{1} << 32, std::size_t{32} << 20};
  return emulated;
}
int driver_version() noexcept { return 0; }
int toolkit_version() noexcept { return 0; }

std::byte* allocate(int, std::size_t bytes) { return static_cast<std::byte*>(std::aligned_alloc(256, (bytes + 255) / 256 * 256)); }
void release(int, std::byte* data) noexcept { std::free(data); }
std::byte* allocate_pinned(std::size_t bytes) { return allocate(0, bytes); }
void release_pinned(std::byte* data) noexcept { std::free(data); }

CurrentDevice::CurrentDevice(int index) : before_(index) {}
CurrentDevice::~CurrentDevice() = default;

Stream make_stream(int index, Priority) { return {Device{DeviceKind::cuda, index}, nullptr}; }
void synchronize(StreamView) {}
void copy_bytes(void* destination, const void* source, std::size_t bytes, StreamView) {
  if (bytes > 0) std::memcpy(destination, source, bytes);
}
void fill_bytes(void* destination, unsigned char value, std::size_t bytes, StreamView) {
  if (bytes > 0) std::memset(destination, value, bytes);
}

Event::Event(int, bool) {}
Event::Event(Event&&) noexcept {}
Event& Event::operator=(Event&&) noexcept { return *this; }
Event::~Event() = default;
void Event::record(StreamView) {}
void Event::order(StreamView) const {}
bool Event::done() const { return true; }
void Event::wait() const {}
double Event::seconds_since(const Event&) const { return 0; }

}  // namespace periplus::cuda

namespace periplus::kernels::cuda {

void copy_from_host(void* to, const void* from, std::size_t bytes, cudaStream_t) {
  if (bytes > 0) std::memcpy(to, from, bytes);
}

/// The emulated device is of capability 8.0: nothing calls them.
namespace hopper {
template <class T, int groups>
void launch_linear(const portable::WalkSet<T, groups>&, std::int64_t, cudaStream_t) {
  throw DeviceError("the emulated device has no wgmma");
}
template void launch_linear(const portable::WalkSet<__nv_bfloat16, 1>&, std::int64_t, cudaStream_t);
template void launch_linear(const portable::WalkSet<__nv_bfloat16, 2>&, std::int64_t, cudaStream_t);
template void launch_linear(const portable::WalkSet<__half, 1>&, std::int64_t, cudaStream_t);
template void launch_linear(const portable::WalkSet<__half, 2>&, std::int64_t, cudaStream_t);
}  // namespace hopper

}  // namespace periplus::kernels::cuda
