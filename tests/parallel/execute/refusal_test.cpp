#include <functional>

#include <gtest/gtest.h>

#include "parallel/attention.h"
#include "parallel/execute/execute.h"
#include "runtime/comm/thread_transport.h"
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

TEST(ExecuteRefuses, WorkspacesThatSlotsCannotLieIn) {
  const Tensor memory({1 << 20}, DType::u8, Memory());
  std::byte* const begin = memory.view().bytes();
  const auto refused = [](TensorView workspace) { return refusal({.communicator = {}, .workspace = workspace}); };
  EXPECT_NE(refused({begin, DType::f32, {1 << 18}}).find("the workspace is a f32 tensor of shape [262144]"), std::string::npos);
  EXPECT_NE(refused({begin, DType::u8, {256}}).find("the workspace holds 256 bytes, the program needs"), std::string::npos);
  EXPECT_NE(refused({begin + 64, DType::u8, {1 << 19}}).find("does not begin at a multiple of 256 bytes"), std::string::npos);
  EXPECT_NE(refused(memory).find("does not bind slot 'q'"), std::string::npos);
}

TEST(ExecuteRefuses, TwoTensorsForASlot) {
  const plan::Plan plan = make_plan(test::ring_problem(LayoutKind::zigzag, 1, {0, 16}), {}, Pass::forward);
  const Tensor workspace({plan.programs[0].workspace_bytes}, DType::u8, Memory()), q({16, 4, 8}, DType::f32, Memory());
  Bindings bindings;
  bindings.input("q", q.view()).input("q", q.view());
  try {
    execute(plan.programs[0], bindings, {.communicator = {}, .workspace = workspace});
    ADD_FAILURE() << "not refused";
  } catch (const InvalidArgument& error) {
    EXPECT_NE(std::string(error.what()).find("binds 'q' twice"), std::string::npos) << error.what();
  }
}

TEST(ExecuteRefuses, MemoryAndStreamOfDifferentDevices) {
  EXPECT_THROW(DistributedAttention(test::ring_problem(LayoutKind::zigzag, 1, {0, 16}), {}, {}, Memory(), nullptr, device_stream()),
               InvalidArgument);
}

/// One rank's tensors of an attention of 16 rows, 4 query heads and 2 KV heads of 8.
struct Operands {
  Memory memory{};
  Tensor q = zeros(4, 8), k = zeros(2, 8), v = zeros(2, 8), out = zeros(4, 8), lse = zeros(4, 1);
  Tensor dout = zeros(4, 8), dq = zeros(4, 8), dk = zeros(2, 8), dv = zeros(2, 8);
  AttentionInputs inputs{q, k, v};
  AttentionOutputs outputs{out, lse};
  AttentionInputGradients results{dq, dk, dv};

  Tensor zeros(std::int64_t heads, std::int64_t width) const { return Tensor::zeros({16, heads, width}, DType::f32, memory); }
};

/// What both passes say to operands that `change` made wrong; the same object then takes right ones.
std::string refusal_of_binding(const std::function<void(Operands&)>& change) {
  DistributedAttention attention(test::ring_problem(LayoutKind::zigzag, 1, {0, 16}), {}, {}, Memory());
  Operands wrong;
  change(wrong);
  std::string message = "not refused";
  try {
    attention.forward(wrong.inputs, wrong.outputs);
    attention.backward(wrong.inputs, wrong.outputs, {wrong.dout}, wrong.results);
  } catch (const InvalidArgument& error) {
    message = error.what();
  }
  const Operands right;
  attention.forward(right.inputs, right.outputs);
  return message;
}

TEST(ExecuteRefuses, TensorsThatNoKernelCanUse) {
  const auto expect = [](std::string_view part, const std::function<void(Operands&)>& change) {
    const std::string message = refusal_of_binding(change);
    EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  const auto nowhere = [](std::int64_t heads) { return TensorView(nullptr, DType::f32, {16, heads, 8}); };
  expect("rank 0 binds 'q' to a tensor of shape [16, 4, 8] without memory", [&](Operands& o) { o.inputs.q = nowhere(4); });
  expect("rank 0 binds 'out' to a tensor of shape [16, 4, 8] without memory", [&](Operands& o) { o.outputs.out = nowhere(4); });
  expect("rank 0 binds 'dk' to a tensor of shape [16, 2, 8] without memory", [&](Operands& o) { o.results.dk = nowhere(2); });
  // Refused before anything has been sent, and with what was given.
  expect("binds 'q' to a f32 tensor of shape [16, 4, 8] and strides [16, 4, 2]", [](Operands& o) {
    o.inputs.q = TensorView(o.q.view().bytes(), DType::f32, {16, 4, 8}, {16, 4, 2});
  });
  expect("the plan has f32 [16, 2, 8], contiguous", [](Operands& o) {
    o.inputs.k = TensorView(o.q.view().bytes(), DType::f32, {16, 2, 8}, {32, 8, 1});
  });
}

TEST(ExecuteRefuses, ResultsThatShareMemory) {
  const auto expect = [](std::string_view part, const std::function<void(Operands&)>& change) {
    const std::string message = refusal_of_binding(change);
    EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  expect("'q' and 'out' share memory", [](Operands& o) { o.outputs.out = o.q; });
  expect("'dk' and 'dv' share memory", [](Operands& o) { o.results.dv = o.dk; });
  expect("'q' and 'dq' share memory", [](Operands& o) { o.results.dq = o.q; });
  EXPECT_EQ(refusal_of_binding([](Operands& o) { o.inputs.v = o.k; }), "not refused");  // what is only read may
}

TEST(ExecuteRefuses, BindingsOfOneRankBeforeAnythingIsSent) {
  comm::run_thread_ranks(2, [](comm::Communicator communicator) {
    DistributedAttention attention(test::ring_problem(LayoutKind::zigzag, 2, {0, 32}), {}, communicator, Memory());
    const Operands right;
    if (communicator.rank() == 1) {
      AttentionInputs wrong = right.inputs;
      wrong.q = TensorView(right.q.view().bytes(), DType::f32, {16, 4, 8}, {16, 4, 2});
      EXPECT_THROW(attention.forward(wrong, right.outputs), InvalidArgument);
    }
    attention.forward(right.inputs, right.outputs);  // the group is still usable
  });
}

}  // namespace
}  // namespace periplus::execute
