#include "kernels/linear_attention.h"

#include <gtest/gtest.h>
#include <omp.h>

#include "kernels/linear_tokens.h"
#include "runtime/cuda/device.h"
#include "runtime/error.h"
#include "tests/kernels/linear_cases.h"
#include "tests/kernels/tolerance.h"
#include "tests/kernels/values.h"

// Every storage type against f64, and what calls are refused.
namespace periplus::kernels {
namespace {

using test::Decay;
using test::expect_refused;
using test::Host;
using test::LinearCase;
using test::LinearPass;

const Stream kStream;

TEST(LinearAttention, MatchesF64OverRandomShapes) {
  std::mt19937_64 random(1);
  for (int trial = 0; trial < 90; ++trial) {
    const LinearCase c = test::random_linear_case(random);
    SCOPED_TRACE(trial);
    if (trial % 3 == 0) {
      test::expect_matches_f64<float>(c, random(), kStream);
    } else if (trial % 3 == 1) {
      test::expect_matches_f64<bfloat16>(c, random(), kStream);
    } else {
      test::expect_matches_f64<float16>(c, random(), kStream);
    }
    if (HasFailure()) return;
  }
}

LinearCase one_case() {
  LinearCase c{.rows = 8, .units = 2, .heads = 2, .width_qk = 4, .width_v = 3, .decay = Decay::diagonal, .delta_rule = true};
  c.runs = {{0, 3, 0, true, false}, {3, 2, 0, false, true}, {6, 2, 1, true, true}};
  return c;
}

TEST(LinearAttention, SameBitsForAnyNumberOfThreads) {
  LinearCase c = one_case();
  c.rows = 130;
  c.heads = 3;
  c.width_qk = c.width_v = 32;
  c.runs = {{0, 70, 0, true, true}, {70, 60, 1, true, true}};
  const int before = omp_get_max_threads();
  LinearPass<float> one(c);
  one.randomize(2);
  LinearPass<float> many = one;
  omp_set_num_threads(1);
  one.forward(kStream);
  one.backward(kStream);
  omp_set_num_threads(3);
  many.forward(kStream);
  many.backward(kStream);
  omp_set_num_threads(before);
  EXPECT_EQ(one.out.raw(), many.out.raw());
  EXPECT_EQ(one.elements.raw(), many.elements.raw());
  EXPECT_EQ(one.delements.raw(), many.delements.raw());
  EXPECT_EQ(one.dq.raw(), many.dq.raw());
  EXPECT_EQ(one.dk.raw(), many.dk.raw());
  EXPECT_EQ(one.dlog_decay.raw(), many.dlog_decay.raw());
}

TEST(LinearAttention, CallsTheProgressHookInEveryFunction) {
  LinearPass<float> pass(one_case());
  pass.randomize(3);
  int calls = 0;
  const Stream stream([&] { ++calls; });
  const auto expect_calls = [&](const auto& call) {
    calls = 0;
    call();
    EXPECT_GT(calls, 0);
  };
  expect_calls([&] { unit_states(pass.block(), pass.elements, stream); });
  expect_calls([&] { unit_states_backward(pass.block(), pass.dout, pass.delements, stream); });
  expect_calls([&] { unit_apply(pass.block(), pass.incoming, pass.out, stream); });
  expect_calls([&] { unit_apply_backward(pass.block(), pass.incoming, pass.dout, pass.doutgoing, pass.gradients(), stream); });
  expect_calls([&] {
    unit_scan(pass.elements, std::vector<UnitFold>{{0, 0, 2}}, Transition::dense, false, pass.incoming, Update::overwrite, stream);
  });
}

// The element pass of linear attention needs no queries, and its backward neither keys nor values.
TEST(LinearAttention, ElementsNeedOnlyWhatTheyAreMadeOf) {
  test::for_each_rule(one_case(), [](const LinearCase& c) {
    LinearPass<float> full(c);
    full.randomize(4);
    LinearPass<float> lean = full;
    full.forward(kStream);
    full.backward(kStream);
    LinearBlock block = lean.block();
    block.q = {};
    unit_states(block, lean.elements, kStream);
    block = lean.block();
    block.v = {};
    if (!c.delta_rule) block.k = {};
    unit_states_backward(block, lean.dout, lean.delements, kStream);
    EXPECT_EQ(full.elements.raw(), lean.elements.raw());
    EXPECT_EQ(full.delements.raw(), lean.delements.raw());
  });
}

/// A block that can be changed before it is refused.
struct LinearAttentionRefuses : testing::Test {
  LinearPass<float> pass{one_case()};
  LinearBlock block = pass.block();
  void expect(const std::vector<std::string>& parts) {
    expect_refused([&] { unit_apply(block, pass.incoming, pass.out, kStream); }, parts);
    block = pass.block();
  }
};

TEST_F(LinearAttentionRefuses, OperandsOfAnotherShapeOrType) {
  Host<float> short_k(7, 2, 4), wide_beta(8, 2, 4), decay(8, 2, 3), flat(1, 1, 1);
  Host<double> double_v(8, 2, 3), double_beta(8, 2, 1);
  block.q = {};
  expect({"unit_apply: q has shape []", "3 dimensions"});
  block.k = short_k;
  block.q = pass.q;
  expect({"unit_apply: q has shape [8, 2, 4], expected [7, 2, 4]"});
  block.v = double_v;
  expect({"v is f64, expected f32"});
  block.log_decay = decay;
  expect({"log_decay has width 3", "1 (per head) or 4 (per channel"});
  block.beta = wide_beta;
  expect({"beta has shape [8, 2, 4], expected [8, 2, 1]"});
  block.beta = double_beta;
  expect({"beta is f64, expected f32"});
  block.v = ConstTensorView(pass.v.view().bytes(), DType::f32, {8, 2, 3}, {6, 1, 2});
  expect({"v has width stride 2", "contiguous"});
}

TEST_F(LinearAttentionRefuses, RunsThatDoNotFit) {
  const auto expect_runs = [&](const std::vector<UnitRun>& runs, const std::vector<std::string>& parts) {
    block.runs = runs;
    expect(parts);
  };
  expect_runs({{5, 4, 0}}, {"unit_apply: run of 4 rows from row 5 on", "block of 8 rows"});
  expect_runs({{-1, 4, 0}}, {"from row -1"});
  expect_runs({{2, 0, 0}}, {"run of 0 rows", "is empty"});
  expect_runs({{0, 4, 0}, {3, 2, 1}}, {"from row 3", "at row 4", "order of rows"});
  expect_runs({{4, 2, 0}, {0, 2, 1}}, {"from row 0", "order of rows"});
  expect_runs({{0, 4, 2}}, {"is of unit 2, but there are 2 units"});
  expect_runs({{0, 4, -1}}, {"is of unit -1"});
  expect_runs({{0, 2, 0}, {2, 2, 0, true, false}}, {"enters unit 0, but is not its first run"});
  expect_runs({{0, 2, 0, false, true}, {2, 2, 0}}, {"follows the run that leaves unit 0"});
}

TEST_F(LinearAttentionRefuses, StatesElementsAndResultsThatDoNotFit) {
  Host<float> narrow(2, 2, 11), elements(2, 2, 12), one_head(8, 1, 3);
  expect_refused([&] { unit_apply(block, narrow, pass.out, kStream); }, {"incoming has shape [2, 2, 11], expected [2, 2, 12]"});
  expect_refused([&] { unit_states(block, elements, kStream); }, {"elements has shape [2, 2, 12], expected [2, 2, 28]"});
  expect_refused([&] { unit_states_backward(block, pass.dout, elements, kStream); }, {"unit_states_backward: elements", "[2, 2, 28]"});
  expect_refused([&] { unit_states_backward(block, one_head, pass.delements, kStream); }, {"dout has shape [8, 1, 3]"});
  const TensorView spread(one_head.view().bytes(), DType::f32, {8, 2, 3}, {3, 0, 1});
  expect_refused([&] { unit_apply(block, pass.incoming, spread, kStream); }, {"out has stride 0 in dimension 1"});
  const auto backward = [&](const LinearGradients& gradients) {
    return [&, gradients] { unit_apply_backward(block, pass.incoming, pass.dout, pass.doutgoing, gradients, kStream); };
  };
  LinearGradients gradients = pass.gradients();
  gradients.dlog_decay = {};
  expect_refused(backward(gradients), {"dlog_decay must be given exactly when log_decay is"});
  gradients = pass.gradients();
  gradients.dbeta = pass.dk;
  expect_refused(backward(gradients), {"dbeta has shape [8, 2, 4], expected [8, 2, 1]"});
  gradients = pass.gradients();
  gradients.dv = pass.dk;
  expect_refused(backward(gradients), {"dv has shape [8, 2, 4], expected [8, 2, 3]"});
}

TEST(LinearTokens, RefuseDecaysWithoutContiguousWidthAndRunsThatDoNotFit) {
  Host<float> memory(8, 2, 6), mirrored(8, 2, 3), states(1, 2, 3);
  const TensorView spread(memory.view().bytes(), DType::f32, {8, 2, 3}, {12, 6, 2});
  const std::vector<UnitRun> run = {{0, 8, 0}}, outside = {{0, 9, 0}}, empty = {{4, 0, 0}}, falling = {{4, 2, 0}, {0, 2, 0}};
  expect_refused([&] { mirror_decay(spread, run, mirrored, kStream); }, {"mirror_decay: log_decay has width stride 2"});
  expect_refused([&] { mirror_decay(mirrored, run, spread, kStream); }, {"mirror_decay: mirrored has width stride 2"});
  expect_refused([&] { decay_states(spread, run, states, kStream); }, {"decay_states: log_decay has width stride 2"});
  expect_refused([&] { mirror_decay(mirrored, outside, mirrored, kStream); }, {"run of 9 rows from row 0", "8 rows"});
  expect_refused([&] { mirror_decay(mirrored, empty, mirrored, kStream); }, {"run of 0 rows from row 4", "is empty"});
  expect_refused([&] { mirror_decay(mirrored, falling, mirrored, kStream); }, {"from row 0", "order of rows"});
}

TEST_F(LinearAttentionRefuses, CudaStreamsWhereThereIsNoDevice) {
  if (periplus::cuda::device_count() > 0) GTEST_SKIP() << "there is a device";
  const Stream cuda(Device{DeviceKind::cuda, 0}, nullptr);
  EXPECT_THROW(unit_apply(block, pass.incoming, pass.out, cuda), Error);
  EXPECT_THROW(unit_states(block, pass.elements, cuda), Error);
  EXPECT_THROW(unit_states_backward(block, pass.dout, pass.delements, cuda), Error);
  EXPECT_THROW(unit_apply_backward(block, pass.incoming, pass.dout, pass.doutgoing, pass.gradients(), cuda), Error);
  Host<float> elements(2, 2, 4 * 4 + 12);
  EXPECT_THROW(unit_scan(elements, {}, Transition::dense, false, pass.incoming, Update::overwrite, cuda), Error);
}

}  // namespace
}  // namespace periplus::kernels
