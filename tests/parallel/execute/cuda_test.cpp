// Plans on virtual ranks of one CUDA device: threads with a stream each. Linked with fake_device.cpp the same tests check the
// waits between streams without a device.
#include "tests/parallel/execute/cuda_test.h"

#include <map>
#include <mutex>
#include <set>

#include "parallel/execute/execute.h"
#include "runtime/comm/thread_transport.h"
#include "runtime/error.h"
#include "tests/parallel/attention_cases.h"

namespace periplus::test {
namespace {

constexpr int kRanks[] = {1, 2, 4, 8};

/// Masks, head counts and extras of all kinds; the tensors' sizes are the caller's.
std::vector<AttentionCase> cases_of(int head_size, int value_size) {
  std::vector<AttentionCase> cases(5);
  cases[0].cu_seqlens = {0, 197}, cases[0].q_heads = 8, cases[0].kv_heads = 8;
  cases[1].cu_seqlens = {0, 50, 131, 132, 193}, cases[1].q_heads = 16, cases[1].kv_heads = 8, cases[1].sink = true;
  cases[2].cu_seqlens = {0, 150}, cases[2].mask = {true, 40, -1, 3}, cases[2].q_heads = 8, cases[2].kv_heads = 2;
  cases[2].lse_gradient = true, cases[2].contiguous_kv = false;
  cases[3].cu_seqlens = {0, 70, 128}, cases[3].mask = {false, -1, -1, 0}, cases[3].q_heads = 8, cases[3].kv_heads = 1;
  cases[4].cu_seqlens = {0, 5, 90}, cases[4].q_heads = 24, cases[4].kv_heads = 8, cases[4].softcap = 5, cases[4].sink = true;
  cases[4].lse_gradient = true;
  for (std::size_t i = 0; i < cases.size(); ++i) {
    cases[i].head_size = head_size, cases[i].value_size = value_size, cases[i].seed = 11 + i;
  }
  return cases;
}

/// Oracles do not depend on strategy, layout and ranks: each is worked out once.
const AttentionOracle& oracle_of(const AttentionCase& c) {
  static std::mutex mutex;
  static std::map<std::string, AttentionOracle> oracles;
  AttentionCase plain = c;
  plain.options = {}, plain.layout = LayoutKind::zigzag;
  const std::lock_guard lock(mutex);
  const auto [entry, is_new] = oracles.try_emplace(to_string(plain));
  if (is_new) entry->second = make_oracle(plain, Memory());
  return entry->second;
}

/// Sets options and a layout that the strategy accepts; false if there is none.
bool fit(AttentionCase& c, const AttentionOptions& options, int ranks) {
  c.options = options;
  for (const LayoutKind layout : {LayoutKind::zigzag, LayoutKind::balanced, LayoutKind::contiguous, LayoutKind::striped}) {
    c.layout = layout;
    if (refusal(c, ranks).empty()) return true;
  }
  return false;
}

void expect_matches_oracle(int ranks, const AttentionCase& c, DType dtype, double forward, double backward) {
  const AttentionOracle& oracle = oracle_of(c);
  comm::run_thread_ranks(ranks, [&](const comm::Communicator& communicator) {
    const AttentionErrors errors = run_case(c, oracle, dtype, communicator, cuda::make_stream(0));
    const auto what = [&] { return fmt::format("{}, rank {} of {}, {}", to_string(dtype), communicator.rank(), ranks, to_string(c)); };
    EXPECT_LE(errors.forward, forward) << what();
    EXPECT_LE(errors.backward, backward) << what();
  });
}

class EveryStrategyOnCuda : public testing::TestWithParam<AttentionOptions> {
 protected:
  void SetUp() override {
    if (cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device: " << cuda::unavailable_reason();
  }
  template <class Check>
  void for_each_case(std::vector<AttentionCase> cases, const Check& check) {
    std::set<int> planned;
    for (const int ranks : kRanks) {
      for (AttentionCase& c : cases) {
        if (!fit(c, GetParam(), ranks)) continue;
        check(ranks, c);
        planned.insert(ranks);
      }
    }
    EXPECT_GE(planned.size(), 2U) << "it refuses nearly everything";
  }
};

TEST_P(EveryStrategyOnCuda, MatchesReferenceInF64) {
  for_each_case(cases_of(8, 5), [](int ranks, const AttentionCase& c) { expect_matches_oracle(ranks, c, DType::f64, 1e-12, 1e-11); });
}

TEST_P(EveryStrategyOnCuda, MatchesReferenceInF32) {
  for_each_case(cases_of(8, 5), [](int ranks, const AttentionCase& c) { expect_matches_oracle(ranks, c, DType::f32, 1e-5, 2e-5); });
}

TEST_P(EveryStrategyOnCuda, MatchesReferenceInBf16AndF16) {
  for_each_case(cases_of(64, 64), [](int ranks, const AttentionCase& c) {
    expect_matches_oracle(ranks, c, DType::bf16, 2e-2, 2e-2);
    if (c.seed % 2 == 0) expect_matches_oracle(ranks, c, DType::f16, 5e-3, 5e-3);
  });
}

std::vector<std::vector<char>> bytes_of_ranks(int ranks, const AttentionCase& c, DType dtype) {
  std::vector<std::vector<char>> bytes(static_cast<std::size_t>(ranks));
  const AttentionOracle& oracle = oracle_of(c);
  comm::run_thread_ranks(ranks, [&](const comm::Communicator& communicator) {
    bytes[static_cast<std::size_t>(communicator.rank())] = run_for_bytes(c, oracle, dtype, communicator, cuda::make_stream(0));
  });
  return bytes;
}

TEST_P(EveryStrategyOnCuda, TimingChangesNoBit) {
  std::vector<AttentionCase> cases = cases_of(64, 64);
  for_each_case({cases[0], cases[1], cases[2]}, [](int ranks, const AttentionCase& c) {
    const DType dtype = c.seed % 2 == 0 ? DType::f32 : DType::bf16;
    const auto once = bytes_of_ranks(ranks, c, dtype);
    for (int i = 0; i < 2; ++i) EXPECT_TRUE(once == bytes_of_ranks(ranks, c, dtype)) << ranks << " ranks, " << to_string(c);
  });
}

// Blocks of several tiles of the fast kernels.
TEST_P(EveryStrategyOnCuda, MatchesReferenceOnLongBlocks) {
  const std::int64_t n = device_is_fake() ? 131 : 2051;
  std::vector<AttentionCase> cases(3);
  cases[0].cu_seqlens = {0, n}, cases[0].q_heads = 8, cases[0].kv_heads = 8, cases[0].head_size = cases[0].value_size = 128;
  cases[1].cu_seqlens = {0, n / 5, n / 2, n}, cases[1].q_heads = 8, cases[1].kv_heads = 4;
  cases[1].head_size = cases[1].value_size = 64, cases[1].sink = true;
  cases[2].cu_seqlens = {0, n}, cases[2].mask = {true, n / 4, -1, 0}, cases[2].q_heads = 8, cases[2].kv_heads = 2;
  cases[2].head_size = cases[2].value_size = 128, cases[2].lse_gradient = true;
  int planned = 0;
  for (AttentionCase& c : cases) {
    if (!fit(c, GetParam(), 4)) continue;
    expect_matches_oracle(4, c, DType::bf16, 2e-2, 2e-2);
    ++planned;
  }
  EXPECT_GE(planned, 1) << "it refuses everything";
}

INSTANTIATE_TEST_SUITE_P(Strategies, EveryStrategyOnCuda, testing::ValuesIn(variants()), name_of_param);

AttentionProblem small_problem(int ranks) {
  const std::vector<std::int64_t> cu{0, 64};
  AttentionProblem problem{SequenceLayout::make(LayoutKind::zigzag, ranks, cu), Mask({}, cu)};
  problem.head_size = 8;
  return problem;
}

class PlansOnCuda : public OnCuda {};

// Layer after layer on one object, with the host ahead of the device: workspace, lanes and events are used again.
TEST_F(PlansOnCuda, RunBackToBackWithoutTheHostWaiting) {
  constexpr int kRuns = 6;
  comm::run_thread_ranks(4, [&](const comm::Communicator& communicator) {
    const Stream stream = cuda::make_stream(0);
    const Memory memory(stream.device());
    DistributedAttention attention(small_problem(4), {}, communicator, memory, nullptr, stream);
    const Memory host;
    std::vector<Tensor> inputs, outputs, lse;
    for (int run = 0; run < kRuns; ++run) {
      // Every value the same per run: attention gives it back, whichever weights.
      const Tensor values({16, 1, 8}, DType::f32, host);
      for (float& x : values.view().span<float>()) x = static_cast<float>(run + 1);
      inputs.push_back(to_device(values, memory, stream));
      outputs.push_back(Tensor::zeros({16, 1, 8}, DType::f32, memory));
      lse.push_back(Tensor::zeros({16, 1, 1}, DType::f32, memory));
    }
    for (std::size_t run = 0; run < kRuns; ++run) {
      attention.forward({inputs[run], inputs[run], inputs[run]}, {outputs[run], lse[run]});
    }
    for (std::size_t run = 0; run < kRuns; ++run) {
      const Tensor result = to_host(outputs[run], stream);
      for (const float x : result.view().span<float>()) ASSERT_NEAR(x, static_cast<float>(run + 1), 1e-5) << "run " << run;
    }
  });
}

TEST_F(PlansOnCuda, AFailureOfOneRankLeavesNothingRunning) {
  EXPECT_THROW(comm::run_thread_ranks(4,
                                      [&](const comm::Communicator& communicator) {
                                        const Stream stream = cuda::make_stream(0);
                                        const Memory memory(stream.device());
                                        DistributedAttention attention(small_problem(4), {}, communicator, memory, nullptr, stream);
                                        const Tensor x = Tensor::zeros({16, 1, 8}, DType::f32, memory),
                                                     out = Tensor::zeros({16, 1, 8}, DType::f32, memory),
                                                     lse = Tensor::zeros({16, 1, 1}, DType::f32, memory);
                                        if (communicator.rank() == 2) throw std::domain_error("rank 2 left");
                                        attention.forward({x, x, x}, {out, lse});
                                      }),
               std::domain_error);
}

TEST_F(PlansOnCuda, WhatTheDeviceCannotDoIsRefused) {
  const plan::Plan plan = make_plan(small_problem(1), {}, Pass::forward);
  const Stream stream = cuda::make_stream(0);
  const Memory memory(stream.device());
  const Tensor workspace({plan.programs[0].workspace_bytes}, DType::u8, memory);
  std::vector<double> seconds;
  const auto refused = [&](execute::Context context, std::string_view part) {
    context.workspace = workspace, context.stream = stream;
    try {
      execute::execute(plan.programs[0], {}, context);
    } catch (const InvalidArgument& error) {
      EXPECT_NE(std::string_view(error.what()).find(part), std::string_view::npos) << error.what();
      return;
    }
    ADD_FAILURE() << "not refused: " << part;
  };
  refused({.communicator = {}, .pace = [](const plan::Program&, const plan::Step&) { return 0.0; }}, "a pace lets a CPU thread sleep");
  refused({.communicator = {}, .step_seconds = &seconds}, "leave step_seconds empty there and use a tracer");
  refused({.communicator = {}, .reserved_multiprocessors = -1}, "-1 multiprocessors cannot be reserved");
}

}  // namespace
}  // namespace periplus::test
