// What runtime/cuda/device.h declares, in a build without CUDA: there is no device.
#include "runtime/cuda/device.h"

#include "runtime/cuda/home_stream.h"
#include "runtime/error.h"

namespace periplus::cuda {
namespace {

constexpr const char* kReason = "this build has no CUDA; configure with -DPERIPLUS_WITH_CUDA=ON";

[[noreturn]] void refuse() { throw BackendUnavailable(std::string("cuda: ") + kReason); }

}  // namespace

std::string unavailable_reason() noexcept { return kReason; }
int device_count() noexcept { return 0; }
DeviceProperties properties(int) { refuse(); }
const DeviceProperties& known_properties(int) { refuse(); }
int driver_version() noexcept { return 0; }
int toolkit_version() noexcept { return 0; }
std::byte* allocate(int, std::size_t) { refuse(); }
void release(int, std::byte*) noexcept {}
std::byte* allocate_pinned(std::size_t) { refuse(); }
void release_pinned(std::byte*) noexcept {}
CurrentDevice::CurrentDevice(int) { refuse(); }
CurrentDevice::~CurrentDevice() = default;
Stream make_stream(int, Priority) { refuse(); }
HomeStream::HomeStream(const Stream&) { refuse(); }
HomeStream::~HomeStream() = default;
void synchronize(StreamView) {}
void copy_bytes(void*, const void*, std::size_t, StreamView) { refuse(); }
void fill_bytes(void*, unsigned char, std::size_t, StreamView) { refuse(); }

Event::Event(int, bool) { refuse(); }
Event::Event(Event&&) noexcept {}
Event& Event::operator=(Event&&) noexcept { return *this; }
Event::~Event() = default;
void Event::record(StreamView) { refuse(); }
void Event::order(StreamView) const { refuse(); }
bool Event::done() const { refuse(); }
void Event::wait() const { refuse(); }
double Event::seconds_since(const Event&) const { refuse(); }

}  // namespace periplus::cuda
