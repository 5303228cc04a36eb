#pragma once

#include "runtime/cuda/device.h"

namespace periplus::cuda {

/// A point in a stream, marked with an event of a pool that the process keeps: making events costs microseconds, and a plan
/// needs one for every wait. It goes back when this is destroyed, which is right as soon as all waits are enqueued: a wait is
/// for the point recorded before it, also if the event is recorded anew meanwhile. Move-only; a default one is long past.
class Mark {
 public:
  Mark() = default;
  /// The point that a stream of a CUDA device has reached so far.
  explicit Mark(StreamView stream);
  Mark(Mark&& other) noexcept { swap(other); }
  Mark& operator=(Mark&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Mark();

  /// Work enqueued on `stream` from now on starts after this point. The host goes on.
  void order(StreamView stream) const;
  bool done() const;
  /// Blocks the host until the stream has passed this point.
  void wait() const;

 private:
  void swap(Mark& other) noexcept {
    std::swap(event_, other.event_);
    std::swap(device_, other.device_);
  }
  Event event_;
  int device_ = -1;
};

}  // namespace periplus::cuda
