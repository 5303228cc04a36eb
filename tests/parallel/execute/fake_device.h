#pragma once

#include <functional>

#include "runtime/device.h"

namespace periplus::test {

/// Adds work to a stream of the device of fake_device.cpp.
void enqueue_on_fake(StreamView stream, std::function<void()> run);

}  // namespace periplus::test
