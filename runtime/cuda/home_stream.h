#pragma once

#include "runtime/device.h"

namespace periplus::cuda {

/// While it lives, the calling thread uses device memory in the order of `stream` alone: what it allocates is first used on the stream or
/// behind a point of it, and what it frees was last used there or before a point that the stream waits for. So the stream may have freed
/// memory again at once, other threads when it has passed, and freeing does not wait for the device. One at a time.
class HomeStream {
 public:
  explicit HomeStream(const Stream& stream);
  HomeStream(const HomeStream&) = delete;
  HomeStream& operator=(const HomeStream&) = delete;
  /// Waits for the stream.
  ~HomeStream();

 private:
  Stream stream_;
};

}  // namespace periplus::cuda
