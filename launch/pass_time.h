#pragma once

#include <chrono>

#include "runtime/comm/communicator.h"
#include "runtime/cuda/device.h"

namespace periplus::launch {

/// Seconds that `pass` takes from when all ranks are there until its results are.
template <class Pass>
double seconds_of_pass(const comm::Communicator& communicator, const Stream& stream, const Pass& pass) {
  communicator.barrier(Stream());
  const auto begin = std::chrono::steady_clock::now();
  pass();
  cuda::synchronize(stream);
  communicator.throw_if_failed();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace periplus::launch
