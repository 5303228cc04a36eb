#pragma once

#include <functional>
#include <vector>

#include "kernels/linear_attention.h"
#include "runtime/device.h"

namespace periplus::test {

/// Adds work to a stream of the device of fake_device.cpp.
void enqueue_on_fake(StreamView stream, std::function<void()> run);

/// run(inputs) later, with runs of its own.
template <class Inputs, class Run>
void enqueue_with_runs(StreamView stream, const Inputs& inputs, const Run& run) {
  enqueue_on_fake(stream, [inputs, run, runs = std::vector<kernels::UnitRun>(inputs.runs.begin(), inputs.runs.end())] {
    Inputs now = inputs;
    now.runs = runs;
    run(now);
  });
}

}  // namespace periplus::test
