// A CUDA device of ordinary memory, linked in place of the real one: what runtime/cuda/device.h, kernels/cuda/attention.h,
// kernels/cuda/linear_attention.h and kernels/cuda/transfer.h declare. Streams are lists of deferred work, which runs as late as possible
// and in a random one of the orders that streams and events allow. So a wait that is missing shows as a wrong result, and a circle of
// waits as an error.
#include "tests/parallel/execute/fake_device.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <utility>
#include <vector>

#include <malloc.h>

#include "kernels/attention.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/linear_attention.h"
#include "kernels/cuda/transfer.h"
#include "kernels/linear_attention.h"
#include "kernels/transfer.h"
#include "runtime/cuda/device.h"
#include "runtime/cuda/home_stream.h"
#include "runtime/error.h"

namespace periplus {
namespace {

/// The point recorded last: whether its stream has passed it, and when. Waits keep the point that they found.
struct Point {
  bool passed = true;
  std::chrono::steady_clock::time_point when{};
};
struct EventState {
  std::shared_ptr<Point> point = std::make_shared<Point>();
};

/// Runs when `ready` says so; nothing to wait for if it is empty.
struct Work {
  std::function<bool()> ready;
  std::function<void()> run;
};

class FakeDevice {
 public:
  void* make_stream() {
    const std::lock_guard lock(mutex_);
    streams_.push_back(std::make_unique<std::deque<Work>>());
    return streams_.back().get();
  }
  void destroy(void* stream) {
    const std::lock_guard lock(mutex_);
    run_until([&] { return list(stream).empty(); });
    std::erase_if(streams_, [&](const auto& owned) { return owned.get() == stream; });
  }
  void enqueue(StreamView stream, Work work) {
    const std::lock_guard lock(mutex_);
    list(stream.native()).push_back(std::move(work));
    if (random_() % 8 == 0) run_one();
  }
  void enqueue(StreamView stream, std::function<void()> run) { enqueue(stream, Work{{}, std::move(run)}); }
  void record(EventState& event, StreamView stream) {
    const std::lock_guard lock(mutex_);
    event.point = std::make_shared<Point>(false);
    list(stream.native()).push_back({{}, [point = event.point] { *point = {true, std::chrono::steady_clock::now()}; }});
  }
  void order(const EventState& event, StreamView stream) {
    const std::lock_guard lock(mutex_);
    list(stream.native()).push_back({[point = event.point] { return point->passed; }, [] {}});
  }
  void wait(const EventState& event) {
    const std::lock_guard lock(mutex_);
    run_until([point = event.point] { return point->passed; });
  }
  /// A host that asks again and again must see the device go on.
  bool passed(const EventState& event) {
    const std::lock_guard lock(mutex_);
    if (!event.point->passed) run_one();
    return event.point->passed;
  }
  void synchronize(void* stream) {
    const std::lock_guard lock(mutex_);
    run_until([&] { return list(stream).empty(); });
  }
  void synchronize_all() {
    const std::lock_guard lock(mutex_);
    run_until([&] { return std::ranges::all_of(streams_, [](const auto& stream) { return stream->empty(); }); });
  }

 private:
  static std::deque<Work>& list(void* stream) { return *static_cast<std::deque<Work>*>(stream); }

  template <class Done>
  void run_until(const Done& done) {
    while (!done()) {
      if (!run_one()) throw DeviceError("fake device: streams wait for each other in a circle");
    }
  }

  /// Streams that come first run far ahead of the others, for a while.
  bool run_one() {
    if (random_() % 32 == 0) std::ranges::shuffle(streams_, random_);
    for (const auto& stream : streams_) {
      if (stream->empty() || (stream->front().ready && !stream->front().ready())) continue;
      const Work work = std::move(stream->front());
      stream->pop_front();
      work.run();
      return true;
    }
    return false;
  }

  std::mutex mutex_;
  std::vector<std::unique_ptr<std::deque<Work>>> streams_;
  std::mt19937_64 random_{std::random_device{}()};
};

FakeDevice& fake() {
  static FakeDevice& device = *new FakeDevice;  // streams of threads may outlive main
  return device;
}

thread_local const Stream* home = nullptr;  // of the calling thread

EventState& state_of(void* native) { return *static_cast<EventState*>(native); }

}  // namespace

namespace test {
void enqueue_on_fake(StreamView stream, std::function<void()> run) { fake().enqueue(stream, std::move(run)); }
}  // namespace test

namespace cuda {

std::string unavailable_reason() noexcept { return ""; }
int device_count() noexcept { return 1; }
DeviceProperties properties(int) { return {.name = "fake", .pci_bus_id = "", .major = 9, .multiprocessors = 1}; }
int driver_version() noexcept { return 0; }
int toolkit_version() noexcept { return 0; }
std::byte* allocate(int, std::size_t bytes) {
  void* const data = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::memset(data, 0xff, bytes);  // NaN in every floating-point type
  return static_cast<std::byte*>(data);
}
/// As the real one: in the order of the thread's home stream, if it has one. Others may use the memory at once then.
void release(int, std::byte* data) noexcept {
  if (home == nullptr) {
    fake().synchronize_all();
    std::free(data);
    return;
  }
  fake().enqueue(*home, [data] {
    std::memset(data, 0xff, malloc_usable_size(data));
    std::free(data);
  });
}
std::byte* allocate_pinned(std::size_t bytes) { return allocate(0, bytes); }
void release_pinned(std::byte* data) noexcept { std::free(data); }
CurrentDevice::CurrentDevice(int) {}
CurrentDevice::~CurrentDevice() = default;
Stream make_stream(int index, Priority) {
  return Stream({DeviceKind::cuda, index}, std::shared_ptr<void>(fake().make_stream(), [](void* owned) { fake().destroy(owned); }));
}
HomeStream::HomeStream(const Stream& stream) : stream_(stream) { home = &stream_; }
HomeStream::~HomeStream() {
  home = nullptr;
  drain(stream_);
}
void synchronize(StreamView stream) {
  if (stream.device().kind == DeviceKind::cuda) fake().synchronize(stream.native());
}
void copy_bytes(void* destination, const void* source, std::size_t bytes, StreamView stream) {
  fake().enqueue(stream, [=] { std::memcpy(destination, source, bytes); });
}
void fill_bytes(void* destination, unsigned char value, std::size_t bytes, StreamView stream) {
  fake().enqueue(stream, [=] { std::memset(destination, value, bytes); });
}
Event::Event(int, bool) : native_(new EventState) {}
Event::Event(Event&& other) noexcept : native_(std::exchange(other.native_, nullptr)) {}
Event& Event::operator=(Event&& other) noexcept {
  std::swap(native_, other.native_);
  return *this;
}
Event::~Event() { delete static_cast<EventState*>(native_); }
void Event::record(StreamView stream) { fake().record(state_of(native_), stream); }
void Event::order(StreamView stream) const { fake().order(state_of(native_), stream); }
bool Event::done() const { return fake().passed(state_of(native_)); }
void Event::wait() const { fake().wait(state_of(native_)); }
double Event::seconds_since(const Event& begin) const {
  return std::chrono::duration<double>(state_of(native_).point->when - state_of(begin.native_).point->when).count();
}

}  // namespace cuda

namespace kernels::cuda {
namespace {
thread_local int reserved = 0;
}

std::string_view to_string(Rung) noexcept { return "fake"; }
Rung highest_rung() noexcept { return Rung::plain; }
void set_highest_rung(Rung) noexcept {}
void set_reserved_multiprocessors(int count) noexcept { reserved = count; }
int reserved_multiprocessors() noexcept { return reserved; }

void attend(const AttentionShape&, const AttentionBlock& block, const AttentionState& state, Update update, StreamView stream) {
  fake().enqueue(stream, [=, bands = std::vector<Band>(block.bands.begin(), block.bands.end())] {
    AttentionBlock now = block;
    now.bands = bands;
    kernels::attend(now, state, update, Stream());
  });
}
void attend_backward(const AttentionShape&, const AttentionBlock& block, ConstTensorView dout, ConstTensorView lse, ConstTensorView delta,
                     const AttentionGradients& gradients, StreamView stream) {
  fake().enqueue(stream, [=, bands = std::vector<Band>(block.bands.begin(), block.bands.end())] {
    AttentionBlock now = block;
    now.bands = bands;
    kernels::attend_backward(now, dout, lse, delta, gradients, Stream());
  });
}
void merge(ConstTensorView part_out, ConstTensorView part_lse, const AttentionState& state, StreamView stream) {
  fake().enqueue(stream, [=] { kernels::merge(part_out, part_lse, state, Stream()); });
}
void finish(ConstTensorView state_out, ConstTensorView state_lse, ConstTensorView sink, TensorView out, TensorView lse, StreamView stream) {
  fake().enqueue(stream, [=] { kernels::finish(state_out, state_lse, sink, out, lse, Stream()); });
}
void delta(ConstTensorView dout, ConstTensorView out, ConstTensorView lse, ConstTensorView dlse, ConstTensorView sink, TensorView delta,
           TensorView dsink, StreamView stream) {
  fake().enqueue(stream, [=] { kernels::delta(dout, out, lse, dlse, sink, delta, dsink, Stream()); });
}
void unit_states(const LinearShape&, const LinearBlock& block, TensorView elements, StreamView stream) {
  test::enqueue_with_runs(stream, block, [=](const LinearBlock& now) { kernels::unit_states(now, elements, Stream()); });
}
void unit_states_backward(const LinearShape&, const LinearBlock& block, ConstTensorView dout, TensorView elements, StreamView stream) {
  test::enqueue_with_runs(stream, block, [=](const LinearBlock& now) { kernels::unit_states_backward(now, dout, elements, Stream()); });
}
void unit_scan(const ScanShape& shape, ConstTensorView elements, std::span<const UnitFold> folds, bool reverse, TensorView states,
               Update update, StreamView stream) {
  fake().enqueue(stream, [=, transition = shape.transition, folds = std::vector<UnitFold>(folds.begin(), folds.end())] {
    kernels::unit_scan(elements, folds, transition, reverse, states, update, Stream());
  });
}
void unit_apply(const LinearShape&, const LinearBlock& block, ConstTensorView incoming, TensorView out, StreamView stream) {
  test::enqueue_with_runs(stream, block, [=](const LinearBlock& now) { kernels::unit_apply(now, incoming, out, Stream()); });
}
void unit_apply_backward(const LinearShape&, const LinearBlock& block, ConstTensorView incoming, ConstTensorView dout,
                         ConstTensorView doutgoing, const LinearGradients& gradients, StreamView stream) {
  test::enqueue_with_runs(
      stream, block, [=](const LinearBlock& now) { kernels::unit_apply_backward(now, incoming, dout, doutgoing, gradients, Stream()); });
}

void move_rows(ConstTensorView source, TensorView destination, std::span<const RowMove> moves, StreamView stream) {
  fake().enqueue(stream,
                 [=, list = std::vector<RowMove>(moves.begin(), moves.end())] { kernels::move_rows(source, destination, list, Stream()); });
}
void add(ConstTensorView source, TensorView destination, StreamView stream) {
  fake().enqueue(stream, [=] { kernels::add(source, destination, Stream()); });
}

}  // namespace kernels::cuda
}  // namespace periplus
