#pragma once

#include <gtest/gtest.h>

#include "runtime/cuda/device.h"

namespace periplus::test {

/// For tests that need a device.
class OnCuda : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device: " << cuda::unavailable_reason();
  }
};

/// Whether the device is the one of fake_device.cpp, which is slow.
inline bool device_is_fake() { return cuda::properties(0).name == "fake"; }

}  // namespace periplus::test
