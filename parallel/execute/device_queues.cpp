#include "parallel/execute/device_queues.h"

#include <exception>
#include <map>

#include "runtime/cuda/device.h"

namespace periplus::execute {
namespace {

using plan::StepId;

/// Lane streams of the calling thread: virtual ranks are threads, and each has its own.
const Stream& lane_stream(int device, int lane) {
  thread_local std::map<int, std::array<Stream, plan::kPlanLanes>> streams;
  Stream& stream = streams[device][static_cast<std::size_t>(lane)];
  if (stream.device().kind == DeviceKind::cpu) stream = cuda::make_stream(device, cuda::Priority::high);
  return stream;
}

}  // namespace

DeviceQueues::DeviceQueues(const plan::Program& program, const Stream& compute)
    : program_(program), awaited_(program.steps.size(), false), marks_(program.steps.size()) {
  for (auto& row : behind_) row.fill(-1);
  streams_[0] = &compute;
  for (const plan::Step& step : program.steps) {
    const int queue = plan::queue_of(step);
    if (queue > 0) streams_[static_cast<std::size_t>(queue)] = &lane_stream(compute.device().index, step.lane);
    for (const StepId other : program.after_of(step)) {
      if (plan::queue_of(this->step(other)) != queue) awaited_[static_cast<std::size_t>(other)] = true;
    }
  }
  const cuda::Mark start(compute);
  for (const Stream* lane : streams_) {
    if (lane != nullptr && lane != &compute) start.order(*lane);
  }
}

void DeviceQueues::begin(StepId id) {
  const int queue = plan::queue_of(step(id));
  auto& behind = behind_[static_cast<std::size_t>(queue)];
  for (const StepId other : program_.after_of(step(id))) {
    const int other_queue = plan::queue_of(step(other));
    StepId& last = behind[static_cast<std::size_t>(other_queue)];
    if (other_queue == queue || last >= other) continue;
    marks_[static_cast<std::size_t>(other)].order(stream(queue));
    last = other;
  }
}

void DeviceQueues::end(StepId id) {
  if (awaited_[static_cast<std::size_t>(id)]) marks_[static_cast<std::size_t>(id)] = cuda::Mark(stream(plan::queue_of(step(id))));
}

void DeviceQueues::join() {
  for (std::size_t queue = 1; queue < streams_.size(); ++queue) {
    if (streams_[queue] != nullptr) cuda::Mark(*streams_[queue]).order(*streams_[0]);
  }
}

void DeviceQueues::drain() noexcept {
  for (const Stream* stream : streams_) {
    try {
      if (stream != nullptr) cuda::synchronize(*stream);
    } catch (const std::exception&) {
      // The device has failed: it runs nothing any more.
    }
  }
}

}  // namespace periplus::execute
