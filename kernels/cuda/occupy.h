#pragma once

#include "runtime/cuda/device.h"

namespace periplus::kernels::cuda {

/// Keeps multiprocessors of a device busy with a kernel that waits, as communication kernels do, until it is destroyed: for
/// measuring what runs beside it. Each of its blocks takes all the shared memory of a multiprocessor.
class Occupation {
 public:
  Occupation(int device, int multiprocessors);
  Occupation(const Occupation&) = delete;
  Occupation& operator=(const Occupation&) = delete;
  ~Occupation();

 private:
  Stream stream_;
  volatile int* over_ = nullptr;  // page-locked, read by the kernel
};

}  // namespace periplus::kernels::cuda
