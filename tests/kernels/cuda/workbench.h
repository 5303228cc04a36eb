#pragma once

#include <gtest/gtest.h>

#include "kernels/cuda/rung.h"
#include "runtime/cuda/device.h"
#include "runtime/error.h"
#include "runtime/memory.h"
#include "tests/kernels/attention_cases.h"

namespace periplus::kernels::test {

using namespace periplus::test;

/// Device memory that a test uses again and again, and a stream; made on first use.
class Workbench {
 public:
  static Workbench& get() {
    static Workbench bench;
    return bench;
  }
  const Stream& stream() const { return stream_; }
  void clear() { used_ = 0; }

  /// A copy on the device, gaps included, at the same strides.
  template <class T>
  TensorView put(Host<T>& host) {
    const TensorView view = host.view();
    std::byte* const to = buffer_.data() + used_;
    used_ += (host.raw().size() * sizeof(T) + 255) / 256 * 256;
    if (used_ > buffer_.bytes()) throw InternalError("the test's device memory is full");
    copy_now(to, view.bytes(), host.raw().size() * sizeof(T));
    return {to, view.dtype(), view.shape(), view.strides()};
  }
  template <class T>
  void take(ConstTensorView from, Host<T>& host) {
    copy_now(host.view().bytes(), from.bytes(), host.raw().size() * sizeof(T));
  }

 private:
  void copy_now(void* to, const void* from, std::size_t bytes) {
    periplus::cuda::copy_bytes(to, from, bytes, stream_);
    periplus::cuda::synchronize(stream_);
  }
  Stream stream_ = periplus::cuda::make_stream(0);
  Buffer buffer_{std::size_t{256} << 20, Memory({DeviceKind::cuda, 0})};
  std::size_t used_ = 0;
};

/// Skips without a device; restores the highest rung.
class CudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (periplus::cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device: " << periplus::cuda::unavailable_reason();
  }
  ~CudaTest() override { cuda::set_highest_rung(rung_); }

 private:
  cuda::Rung rung_ = cuda::highest_rung();
};

}  // namespace periplus::kernels::test
