#include "parallel/attention.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <mutex>

#include <gtest/gtest.h>

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

TEST(RingAttentionNumbers, TwoRunsAreBitwiseEqual) {
  AttentionCase c;
  c.cu_seqlens = {0, 100, 161, 300};
  c.q_heads = 4, c.kv_heads = 2;
  const Memory memory;
  const AttentionOracle oracle = make_oracle(c, memory);
  std::mutex mutex;
  std::array<std::vector<std::vector<char>>, 2> runs;
  for (auto& results : runs) {
    results.resize(3);
    comm::run_thread_ranks(3, [&](comm::Communicator communicator) {
      const int rank = communicator.rank();
      AttentionProblem p{SequenceLayout::make(c.layout, 3, c.cu_seqlens), Mask(c.mask, c.cu_seqlens)};
      p.q_heads = 4, p.kv_heads = 2, p.head_size = 4, p.value_size = 3;
      const std::int64_t n = p.layout.rows_of(rank);
      const auto rows = p.layout.global_rows(rank);
      const auto local = [&](const Tensor& global) {
        Tensor t({n, global.shape()[1], global.shape()[2]}, DType::f32, memory);
        for (std::int64_t i = 0; i < n; ++i)
          copy(ConstTensorView(global).slice(0, rows[static_cast<std::size_t>(i)], 1), t.view().slice(0, i, 1));
        return t;
      };
      const Tensor q = local(oracle.q), k = local(oracle.k), v = local(oracle.v), dout = local(oracle.dout);
      const auto like = [&](const Tensor& t) { return Tensor::zeros(t.shape(), DType::f32, memory); };
      const Tensor out = like(dout), lse = Tensor::zeros({n, 4, 1}, DType::f32, memory), dq = like(q), dk = like(k), dv = like(v);
      DistributedAttention attention(p, {}, communicator, memory);
      attention.forward({q, k, v}, {out, lse});
      attention.backward({q, k, v}, {out, lse}, {dout}, {dq, dk, dv});
      const std::lock_guard lock(mutex);
      for (const Tensor* t : {&out, &lse, &dq, &dk, &dv}) {
        const auto bytes = reinterpret_cast<const char*>(t->view().bytes());
        auto& mine = results[static_cast<std::size_t>(rank)];
        mine.insert(mine.end(), bytes, bytes + t->view().size_bytes());
      }
    });
  }
  EXPECT_EQ(runs[0], runs[1]);
}

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
    EXPECT_NE(std::string(error.what()).find("attention problem"), std::string::npos) << error.what();
  }
}

TEST(DistributedAttentionTraffic, BytesSentEqualThePlanAndTheFormula) {
  for (const int ranks : {1, 2, 3, 4, 8}) {
    AttentionCase c;
    c.cu_seqlens = {0, 33, 96};
    const Memory memory;
    const AttentionOracle oracle = make_oracle(c, memory);
    AttentionProblem p{SequenceLayout::make(c.layout, ranks, c.cu_seqlens), Mask(c.mask, c.cu_seqlens)};
    p.q_heads = 2, p.kv_heads = 1, p.head_size = 4, p.value_size = 3;
    std::int64_t planned = 0;
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      const plan::Plan plan = make_plan(p, {}, pass);
      std::int64_t sum = 0;
      for (const plan::Program& program : plan.programs) sum += program.bytes_sent();
      EXPECT_EQ(sum, plan.claim.bytes_sent);
      planned += sum;
    }
    std::atomic<std::int64_t> counted{0};
    comm::run_thread_ranks(ranks, [&](comm::Communicator communicator) {
      comm::require_same_on_all_ranks(communicator, 1, "nothing", Stream());
      const auto overhead = communicator.traffic().bytes_sent;  // of the comparison that the constructor repeats
      run_case(c, oracle, DType::f32, communicator);
      counted += static_cast<std::int64_t>(communicator.traffic().bytes_sent - 2 * overhead);
    });
    EXPECT_EQ(counted, planned) << ranks << " ranks";
  }
}

}  // namespace
}  // namespace periplus::test
