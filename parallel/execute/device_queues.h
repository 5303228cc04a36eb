#pragma once

#include <array>
#include <vector>

#include "parallel/plan/plan.h"
#include "runtime/cuda/events.h"
#include "runtime/device.h"

namespace periplus::execute {

/// The queues of a program as streams of a CUDA device: the compute queue is the caller's stream, every lane a stream of high
/// priority that the calling thread keeps between runs. To the executor a step is over once it is enqueued; what it has to wait
/// for on the device is arranged here, by marks in the queues that others wait for.
class DeviceQueues {
 public:
  /// Lanes start where `compute` stands: behind what fills the inputs and behind the run before.
  DeviceQueues(const plan::Program& program, const Stream& compute);

  StreamView stream(int queue) const { return *streams_[static_cast<std::size_t>(queue)]; }
  /// Before the work of a step is enqueued, and when all of it is.
  void begin(plan::StepId id);
  void end(plan::StepId id);
  /// The compute queue waits for all lanes.
  void join();
  /// Blocks the host until nothing runs any more, so that memory may be freed after a failure.
  void drain() noexcept;

 private:
  const plan::Step& step(plan::StepId id) const { return program_.steps[static_cast<std::size_t>(id)]; }

  const plan::Program& program_;
  std::array<const Stream*, plan::kQueues> streams_{};  ///< Null for lanes that the program does not use.
  std::vector<bool> awaited_;                           ///< By step: whether another queue waits for it.
  std::vector<cuda::Mark> marks_;                       ///< By step, behind those.
  /// The last step of each queue that each queue waits for already: what comes before it needs no wait of its own.
  std::array<std::array<plan::StepId, plan::kQueues>, plan::kQueues> behind_;
};

}  // namespace periplus::execute
