#include "parallel/attention.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <mutex>

#include <gtest/gtest.h>

#include "parallel/choose.h"
#include "runtime/comm/thread_transport.h"
#include "runtime/error.h"
#include "tests/parallel/attention_cases.h"

namespace periplus::test {
namespace {

void expect_matches_oracle(int ranks, const AttentionCase& c, DType dtype, double forward, double backward) {
  const Memory memory;
  const AttentionOracle oracle = make_oracle(c, memory);
  const double stretch = std::max(1.0, oracle.largest_score / 16);
  comm::run_thread_ranks(ranks, [&](comm::Communicator communicator) {
    const AttentionErrors errors = run_case(c, oracle, dtype, communicator);
    EXPECT_LE(errors.forward, forward * stretch) << "rank " << communicator.rank() << " of " << ranks << ", " << to_string(c);
    EXPECT_LE(errors.backward, backward * stretch) << "rank " << communicator.rank() << " of " << ranks << ", " << to_string(c);
  });
}

class RingAttention : public testing::TestWithParam<int> {};

TEST_P(RingAttention, MatchesReferenceInFp64OnEveryRankAndGradient) {
  for (const AttentionCase& c : sweep(GetParam())) expect_matches_oracle(GetParam(), c, DType::f64, 1e-12, 1e-11);
}

TEST_P(RingAttention, MatchesReferenceInFp32) {
  for (AttentionCase c : sweep(GetParam())) {
    c.logits = 1;
    expect_matches_oracle(GetParam(), c, DType::f32, 1e-5, 2e-5);
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, RingAttention, testing::Values(1, 2, 3, 4, 5, 8));

TEST(RingAttentionNumbers, LogitsOfTenThousandStayFinite) {
  AttentionCase c;
  c.cu_seqlens = {0, 50, 131};
  c.logits = 1e4;
  for (const int ranks : {1, 3, 4}) expect_matches_oracle(ranks, c, DType::f64, 1e-12, 1e-11);
}

class EveryStrategy : public testing::TestWithParam<AttentionOptions> {};

TEST_P(EveryStrategy, MatchesReferenceInFp64OnEveryRankAndGradient) {
  std::size_t cases = 0;
  for (const int ranks : {1, 2, 3, 4, 5, 6, 8}) {
    for (const AttentionCase& c : sample(ranks, GetParam(), 12)) {
      expect_matches_oracle(ranks, c, DType::f64, 1e-12, 1e-11);
      ++cases;
    }
  }
  EXPECT_GE(cases, 12u) << "it refuses nearly everything";
}

// Storage types below the accumulator's have casts of their own at the ends of sums.
TEST_P(EveryStrategy, MatchesReferenceInF32AndBf16) {
  for (const int ranks : {2, 3, 5}) {
    for (AttentionCase& c : sample(ranks, GetParam(), 4)) {
      c.logits = 1;
      expect_matches_oracle(ranks, c, DType::f32, 1e-5, 2e-5);
      expect_matches_oracle(ranks, c, DType::bf16, 2e-2, 2e-2);
    }
  }
}

std::vector<std::vector<char>> bytes_of_ranks(int ranks, const AttentionCase& c, const AttentionOracle& oracle,
                                              const comm::TransportOptions& transport = {}) {
  std::vector<std::vector<char>> bytes(static_cast<std::size_t>(ranks));
  comm::run_thread_ranks(
      ranks,
      [&](comm::Communicator communicator) {
        bytes[static_cast<std::size_t>(communicator.rank())] = run_for_bytes(c, oracle, DType::f32, communicator);
      },
      transport);
  return bytes;
}

TEST_P(EveryStrategy, TimingChangesNoBit) {
  for (const int ranks : {2, 4}) {
    for (AttentionCase& c : sample(ranks, GetParam(), 2)) {
      const Memory memory;
      const AttentionOracle oracle = make_oracle(c, memory);
      const auto once = bytes_of_ranks(ranks, c, oracle);
      EXPECT_EQ(once, bytes_of_ranks(ranks, c, oracle)) << to_string(c);
      for (const comm::Sharing sharing : {comm::Sharing::pair, comm::Sharing::half_duplex}) {
        const comm::Links slow{{.bytes_per_second = 30e6, .latency_seconds = 2e-4, .sharing = sharing}, {.bytes_per_second = 10e6}, 2};
        EXPECT_EQ(once, bytes_of_ranks(ranks, c, oracle, {.links = slow})) << to_string(c);
      }
    }
  }
}

TEST_P(EveryStrategy, BytesSentEqualThePlanAndTheFormula) {
  for (const int ranks : {1, 2, 3, 4, 8}) {
    for (AttentionCase& c : sample(ranks, GetParam(), 2)) {
      const Memory memory;
      const AttentionOracle oracle = make_oracle(c, memory);
      const AttentionProblem p = problem_of(c, DType::f32, ranks);
      std::int64_t planned = 0;
      for (const Pass pass : {Pass::forward, Pass::backward}) {
        const plan::Plan plan = make_plan(p, c.options, pass);
        std::int64_t sum = 0;
        for (const plan::Program& program : plan.programs) sum += program.bytes_sent();
        EXPECT_TRUE(plan.claim.bytes_sent < 0 || sum == plan.claim.bytes_sent) << to_string(c);
        planned += sum;
      }
      std::atomic<std::int64_t> counted{0};
      c.sink = false;  // its gradient is summed by a collective of the test
      if (p.sink) continue;
      comm::run_thread_ranks(ranks, [&](comm::Communicator communicator) {
        const std::array<comm::NamedDigest, 3> nothing{};
        comm::require_same_on_all_ranks(communicator, nothing, Stream());
        const auto overhead = communicator.traffic().bytes_sent;  // of the comparison that the constructor repeats
        run_case(c, oracle, DType::f32, communicator);
        counted += static_cast<std::int64_t>(communicator.traffic().bytes_sent - 2 * overhead);
      });
      EXPECT_EQ(counted, planned) << ranks << " ranks " << to_string(c);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Strategies, EveryStrategy, testing::ValuesIn(variants()), name_of_param);

AttentionProblem small_problem(int ranks) {
  const std::vector<std::int64_t> cu{0, 64};
  return {SequenceLayout::make(LayoutKind::zigzag, ranks, cu), Mask({}, cu)};
}

TEST(DistributedAttentionErrors, SayWhatIsWrong) {
  const auto message = [](auto&& body) -> std::string {
    try {
      body();
    } catch (const InvalidArgument& error) {
      return error.what();
    }
    return "no error";
  };
  AttentionProblem heads = small_problem(2);
  heads.q_heads = 5, heads.kv_heads = 2;
  EXPECT_NE(message([&] { make_plan(heads, {}, Pass::forward); }).find("5 query heads over 2 KV heads"), std::string::npos);
  AttentionOptions unknown;
  unknown.strategy = "spiral";
  EXPECT_NE(message([&] { make_plan(small_problem(2), unknown, Pass::forward); }).find("'spiral' is not known; there are: ring"),
            std::string::npos);
  EXPECT_NE(
      message([&] { DistributedAttention(small_problem(2), {}, {}, Memory()); }).find("the layout is for 2 ranks, the communicator has 1"),
      std::string::npos);
  const Memory memory;
  const std::string binding = message([&] {
    DistributedAttention attention(small_problem(1), {}, {}, memory);
    const Tensor q({64, 1, 64}, DType::f32, memory), k({63, 1, 64}, DType::f32, memory), lse({64, 1, 1}, DType::f32, memory);
    attention.forward({q, k, q}, {q, lse});
  });
  EXPECT_NE(binding.find("binds 'k' to a f32 tensor of shape"), std::string::npos) << binding;
}

TEST(DistributedAttentionErrors, NumbersThatAreNoneAreRefusedBeforeTheyReachAResult) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN(), kInfinity = std::numeric_limits<double>::infinity();
  for (const double value : {kNan, kInfinity, -kInfinity}) {
    AttentionProblem scaled = small_problem(2), capped = small_problem(2);
    scaled.scale = capped.softcap = value;
    EXPECT_THROW(make_plan(scaled, {}, Pass::forward), InvalidArgument);
    EXPECT_THROW(make_plan(capped, {}, Pass::forward), InvalidArgument);
  }
  for (double Machine::*const rate : {&Machine::rank_gflops, &Machine::memory_gbytes, &Machine::link_gbytes, &Machine::node_gbytes}) {
    for (const double value : {0.0, -1.0, kNan, kInfinity}) {
      AttentionOptions automatic{.strategy = "auto"};
      automatic.machine.*rate = value;
      EXPECT_THROW(make_plan(small_problem(2), automatic, Pass::forward), InvalidArgument);
    }
  }
  AttentionOptions late{.strategy = "auto"};
  late.machine.link_latency_us = kNan;
  EXPECT_THROW(make_plan(small_problem(2), late, Pass::forward), InvalidArgument);
}

TEST(ChooseStrategy, TakesFiguresAndNodesOfADescribedMachine) {
  simulate::Machine machine;
  machine.devices = 16, machine.devices_per_node = 8;
  machine.links = {{.bytes_per_second = 3e11, .latency_seconds = 2e-6, .sharing = comm::Sharing::pair},
                   {.bytes_per_second = 5e10, .latency_seconds = 9e-6, .sharing = comm::Sharing::port},
                   8};
  machine.kernels.memory_bytes_per_second = 2e12;
  machine.kernels.forward = {{1024}, {3e12}, {4e12}};
  machine.kernels.backward = {{1024}, {1e12}, {2e12}};
  AttentionOptions all{.strategy = "auto"}, node{.strategy = "auto"}, told{.strategy = "auto", .ranks_per_node = 4};
  use_machine(all, machine, 16, 4096);
  const Machine expected{.rank_gflops = 14e3 / 6,
                         .memory_gbytes = 2000,
                         .link_gbytes = 300,
                         .link_latency_us = 2,
                         .node_gbytes = 50,
                         .node_latency_us = 9,
                         .link_sharing = "pair"};
  EXPECT_NEAR(all.machine.rank_gflops, expected.rank_gflops, 1e-6);
  for (double Machine::*const figure :
       {&Machine::memory_gbytes, &Machine::link_gbytes, &Machine::link_latency_us, &Machine::node_gbytes, &Machine::node_latency_us})
    EXPECT_DOUBLE_EQ(all.machine.*figure, expected.*figure);
  EXPECT_EQ(all.machine.link_sharing, expected.link_sharing);
  EXPECT_EQ(all.ranks_per_node, 8);
  use_machine(node, machine, 8, 4096);
  EXPECT_EQ(node.ranks_per_node, 0);
  use_machine(told, machine, 16, 4096);
  EXPECT_EQ(told.ranks_per_node, 4);
  EXPECT_THROW(use_machine(all, machine, 17, 4096), InvalidArgument);
}

TEST(DistributedAttentionErrors, NothingGivenIsIgnored) {
  const std::vector<std::int64_t> one{0, 64}, two{0, 32, 64};
  const AttentionProblem mixed{SequenceLayout::make(LayoutKind::zigzag, 2, one), Mask({}, two)};
  EXPECT_THROW(make_plan(mixed, {}, Pass::forward), InvalidArgument);
  const Memory memory;
  DistributedAttention attention(small_problem(1), {}, {}, memory);
  const auto zeros = [&](std::int64_t width) { return Tensor::zeros({64, 1, width}, DType::f32, memory); };
  const Tensor q = zeros(64), out = zeros(64), lse = zeros(1), sink = Tensor::zeros({1, 1, 1}, DType::f32, memory);
  EXPECT_THROW(attention.forward({q, q, q, sink}, {out, lse}), InvalidArgument);
  attention.forward({q, q, q}, {out, lse});
  const Tensor dq = zeros(64), dk = zeros(64), dv = zeros(64);
  EXPECT_THROW(attention.backward({q, q, q}, {out, lse}, {q, lse}, {dq, dk, dv}), InvalidArgument);
}

TEST(DistributedAttentionErrors, ALayoutOfTheWrongSizeOnOneRankIsRefusedByAll) {
  std::atomic<int> refused = 0;
  const auto body = [&](const comm::Communicator& communicator) {
    const Memory memory;
    EXPECT_THROW(DistributedAttention(small_problem(communicator.rank() == 1 ? 4 : 3), {}, communicator, memory), InvalidArgument);
    ++refused;
  };
  comm::run_thread_ranks(3, body, {.deadline = std::chrono::seconds(5)});
  EXPECT_EQ(refused, 3);
}

TEST(DistributedAttentionErrors, ARankThatLeavesEndsThePlanOfTheOthers) {
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_THROW(comm::run_thread_ranks(2,
                                      [&](comm::Communicator communicator) {
                                        const Memory memory;
                                        AttentionProblem p = small_problem(2);
                                        DistributedAttention attention(p, {}, communicator, memory);
                                        const Tensor q = Tensor::zeros({32, 1, 64}, DType::f32, memory);
                                        const Tensor out = Tensor::zeros({32, 1, 64}, DType::f32, memory);
                                        const Tensor lse = Tensor::zeros({32, 1, 1}, DType::f32, memory);
                                        if (communicator.rank() == 1) {
                                          // It leaves the plan; a caller that goes on must not feed later plans with its messages.
                                          communicator.abort("rank 1 left");
                                          throw InvalidArgument("rank 1 left");
                                        }
                                        attention.forward({q, q, q}, {out, lse});
                                      }),
               InvalidArgument);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
}

TEST(DistributedAttentionErrors, RanksThatDisagreeAreTold) {
  try {
    comm::run_thread_ranks(2, [&](comm::Communicator communicator) {
      AttentionProblem p = small_problem(2);
      if (communicator.rank() == 1) p.scale = 0.5;
      DistributedAttention(p, {}, communicator, Memory());
    });
    FAIL() << "different problems were accepted";
  } catch (const InvalidArgument& error) {
    EXPECT_NE(std::string(error.what()).find("attention: the problem: rank 1 of 2"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace periplus::test
