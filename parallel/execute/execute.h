#pragma once

#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "parallel/plan/plan.h"
#include "runtime/comm/communicator.h"
#include "runtime/device.h"
#include "runtime/tensor.h"
#include "runtime/trace.h"

namespace periplus::execute {

/// The caller's tensors for the input, saved and output slots of a program, by slot name. Views must stay valid and
/// inputs unchanged until execute() returns, on a device until the stream has passed.
class Bindings {
 public:
  Bindings& input(std::string name, ConstTensorView tensor) {
    // The executor only reads input slots: no step that verify() accepts writes one.
    return output(std::move(name), TensorView(const_cast<std::byte*>(tensor.bytes()), tensor.dtype(), tensor.shape(), tensor.strides()));
  }
  Bindings& output(std::string name, TensorView tensor) {
    tensors_.emplace_back(std::move(name), tensor);
    return *this;
  }
  std::span<const std::pair<std::string, TensorView>> tensors() const noexcept { return tensors_; }

 private:
  std::vector<std::pair<std::string, TensorView>> tensors_;
};

/// On a device only what the host knows: `seconds` is the time it took to enqueue the program, the other times are 0.
struct Statistics {
  double seconds = 0;
  double compute_seconds = 0;
  double exposed_seconds = 0;  ///< Waiting for messages with nothing to compute.
  std::int64_t bytes_sent = 0;
};

/// Seconds that a compute step takes.
using Pace = std::function<double(const plan::Program&, const plan::Step&)>;

/// Where a program runs.
struct Context {
  comm::Communicator communicator;
  TensorView workspace = {};  ///< u8, at least program.workspace_bytes, 256-byte aligned.
  Tracer* tracer = nullptr;   ///< Gets one event per step; those of a device once it settles.
  /// If set, compute steps touch no data and take as many seconds as it says, asleep: for measuring plans and this executor
  /// with more ranks than cores.
  Pace pace = {};
  std::vector<double>* step_seconds = nullptr;  ///< Gets the time of each compute step, by step id; 0 for exchanges.
  /// The compute queue, on the device that holds bindings and workspace: a stream of a CUDA device, or the CPU, where the
  /// executor has a stream of its own, whose hook moves messages.
  Stream stream = {};
  /// CUDA: multiprocessors that attention leaves free in programs with exchanges, for transports whose messages are moved by
  /// kernels. The thread transport's are copies and need none.
  int reserved_multiprocessors = 0;
};

/// Runs one rank's program. Exchanges are posted as soon as their lane and dependencies allow. Allocates nothing that grows with
/// the tensors. Collective over the ranks of the plan.
/// CPU      Returns when the program has finished, sends included. Messages move from inside the kernels.
/// CUDA     Returns when everything is enqueued; the host has waited for hosts of peers only. Compute steps go to the given
///          stream, each lane has a stream of its own with high priority, and at the end the given stream waits for the lanes:
///          results are there, and workspace, tensors and stream may go, when it has passed.
/// Errors   InvalidArgument, before anything is sent and so with a group that is still usable, for a wrong binding (shape, type or
///          strides that are not as planned, no memory, memory that a result shares with another tensor, a slot bound twice) or
///          workspace, or for what the stream's device or the communicator cannot do; CommError. After an error nothing of the
///          program runs any more.
Statistics execute(const plan::Program& program, const Bindings& bindings, const Context& context);

}  // namespace periplus::execute
