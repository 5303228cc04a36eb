#include <gtest/gtest.h>

#include "parallel/attention.h"
#include "parallel/execute/execute.h"
#include "runtime/error.h"
#include "tests/parallel/plan/plan_cases.h"

// What a context asks for is done or refused, before a peer can be waiting.
namespace periplus::execute {
namespace {

const Stream& device_stream() {
  static const Stream stream({DeviceKind::cuda, 0}, nullptr);
  return stream;
}

std::string refusal(const Context& context) {
  const plan::Plan plan = make_plan(test::ring_problem(LayoutKind::zigzag, 1, {0, 16}), {}, Pass::forward);
  try {
    execute(plan.programs[0], {}, context);
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "not refused";
}

TEST(ExecuteRefuses, WhatTheDeviceOfItsStreamCannotDo) {
  const auto expect = [](const Context& context, std::string_view part) {
    const std::string message = refusal(context);
    EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  std::vector<double> seconds;
  expect({.communicator = {}, .reserved_multiprocessors = 8}, "8 multiprocessors are reserved, but a cpu stream has none");
  expect({.communicator = {}, .pace = [](const plan::Program&, const plan::Step&) { return 0.0; }, .stream = device_stream()},
         "a pace lets a CPU thread sleep and cannot slow the stream on cuda:0");
  expect({.communicator = {}, .step_seconds = &seconds, .stream = device_stream()}, "leave step_seconds empty there and use a tracer");
  expect({.communicator = {}, .stream = device_stream(), .reserved_multiprocessors = -1}, "-1 multiprocessors cannot be reserved");
}

TEST(ExecuteRefuses, MemoryAndStreamOfDifferentDevices) {
  EXPECT_THROW(DistributedAttention(test::ring_problem(LayoutKind::zigzag, 1, {0, 16}), {}, {}, Memory(), nullptr, device_stream()),
               InvalidArgument);
}

}  // namespace
}  // namespace periplus::execute
