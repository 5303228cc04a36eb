#include "parallel/linear_attention.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include <gtest/gtest.h>

#include "parallel/execute/execute.h"
#include "runtime/comm/thread_transport.h"
#include "runtime/error.h"
#include "tests/parallel/linear_cases.h"

namespace periplus::test {
namespace {

void expect_matches_one_rank(int ranks, const LinearCase& c, DType dtype, double tolerance) {
  const Memory memory;
  const LinearOracle oracle = make_linear_oracle(c, memory);
  comm::run_thread_ranks(ranks, [&](comm::Communicator communicator) {
    const LinearErrors errors = run_linear_case(c, oracle, dtype, communicator);
    const std::string where = "rank " + std::to_string(communicator.rank()) + " of " + std::to_string(ranks) + ", " + to_string(c);
    EXPECT_LE(errors.out, tolerance) << where;
    EXPECT_LE(errors.incoming, tolerance) << where;
    EXPECT_LE(errors.gradients, tolerance) << where;
  });
}

class LinearStrategy : public testing::TestWithParam<LinearAttentionOptions> {};

TEST_P(LinearStrategy, MatchesOneRankInFp64OnEveryRankAndGradient) {
  for (const int ranks : {1, 2, 3, 4, 5, 8}) {
    for (const LinearCase& c : linear_sweep(ranks, GetParam())) expect_matches_one_rank(ranks, c, DType::f64, 1e-11);
  }
}

// The oracle is the sum over pairs of tokens.
TEST_P(LinearStrategy, BidirectionalAndNormalisedMatchEveryPairOfTokens) {
  for (const int ranks : {1, 2, 3, 4, 8}) {
    for (const LinearCase& c : extended_sweep(ranks, GetParam())) expect_matches_one_rank(ranks, c, DType::f64, 1e-11);
  }
}

/// Few cases of every kind.
std::vector<LinearCase> some_cases(int ranks, const LinearAttentionOptions& options) {
  std::vector<LinearCase> all = linear_sweep(ranks, options), some;
  for (const LinearCase& c : extended_sweep(ranks, options)) all.push_back(c);
  for (std::size_t i = static_cast<std::size_t>(ranks) % 3; i < all.size(); i += 5) some.push_back(all[i]);
  return some;
}

TEST_P(LinearStrategy, MatchesOneRankInF32AndBf16) {
  for (const int ranks : {2, 3, 5}) {
    for (const LinearCase& c : some_cases(ranks, GetParam())) {
      expect_matches_one_rank(ranks, c, DType::f32, 2e-5);
      // A weight's gradient is (dout.v - dout.out) / z: where its own token is nearly all that a token sees, what the rounding of
      // out leaves of the difference, divided by a small z, is many times that rounding.
      expect_matches_one_rank(ranks, c, DType::bf16, c.normalise ? 0.1 : 3e-2);
    }
  }
}

using BytesOfRanks = std::vector<std::vector<char>>;

BytesOfRanks bytes_of_ranks(int ranks, const LinearCase& c, const LinearOracle& oracle, const comm::TransportOptions& transport = {}) {
  BytesOfRanks bytes(static_cast<std::size_t>(ranks));
  comm::run_thread_ranks(
      ranks,
      [&](comm::Communicator communicator) {
        RankLinearAttention attention(c, oracle, DType::f32, communicator);
        attention.forward();
        attention.backward();
        bytes[static_cast<std::size_t>(communicator.rank())] = attention.bytes();
      },
      transport);
  return bytes;
}

TEST_P(LinearStrategy, TimingChangesNoBit) {
  for (const int ranks : {2, 4}) {
    for (const LinearCase& c : some_cases(ranks, GetParam())) {
      const Memory memory;
      const LinearOracle oracle = make_linear_oracle(c, memory);
      const BytesOfRanks once = bytes_of_ranks(ranks, c, oracle);
      EXPECT_EQ(once, bytes_of_ranks(ranks, c, oracle)) << to_string(c);
      const comm::Links slow{{.bytes_per_second = 30e6, .latency_seconds = 2e-4, .sharing = comm::Sharing::half_duplex}};
      EXPECT_EQ(once, bytes_of_ranks(ranks, c, oracle, {.links = slow})) << to_string(c);
    }
  }
}

TEST_P(LinearStrategy, BytesSentEqualThePlanAndTheFormula) {
  for (const int ranks : {1, 2, 3, 4, 8}) {
    for (const LinearCase& c : some_cases(ranks, GetParam())) {
      const Memory memory;
      const LinearOracle oracle = make_linear_oracle(c, memory);
      std::int64_t claimed = 0;
      for (const Pass pass : {Pass::forward, Pass::backward})
        claimed += make_plan(problem_of(c, DType::f32, ranks), c.options, pass).claim.bytes_sent;
      std::atomic<std::int64_t> counted{0};
      comm::run_thread_ranks(ranks, [&](comm::Communicator communicator) {
        RankLinearAttention attention(c, oracle, DType::f32, communicator);
        const auto before = communicator.traffic().bytes_sent;
        attention.forward();
        attention.backward();
        counted += static_cast<std::int64_t>(communicator.traffic().bytes_sent - before);
      });
      EXPECT_EQ(counted, claimed) << ranks << " ranks " << to_string(c);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Strategies, LinearStrategy, testing::ValuesIn(linear_variants()), name_of_linear_param);

// Chain, gather and slices fold the same elements in the same order.
TEST(LinearAttention, StrategiesAgreeToTheRoundingOfF32) {
  for (const int ranks : {2, 3, 5}) {
    for (const LinearCase& c : some_cases(ranks, {})) {
      const Memory memory;
      const LinearOracle oracle = make_linear_oracle(c, memory);
      const BytesOfRanks want = bytes_of_ranks(ranks, c, oracle);
      for (const LinearAttentionOptions& options : linear_variants()) {
        LinearCase other = c;
        other.options.strategy = options.strategy, other.options.pieces = options.pieces;
        const BytesOfRanks got = bytes_of_ranks(ranks, other, oracle);
        for (std::size_t r = 0; r < got.size(); ++r) {
          ASSERT_EQ(got[r].size(), want[r].size());
          for (std::size_t i = 0; i < got[r].size(); i += sizeof(float)) {
            float a = 0, b = 0;
            std::memcpy(&a, &got[r][i], sizeof(float)), std::memcpy(&b, &want[r][i], sizeof(float));
            ASSERT_NEAR(a, b, 2e-5 * std::max(1.0F, std::abs(b))) << to_string(other);
          }
        }
      }
    }
  }
}

TEST(LinearAttention, PairwiseGradientsMatchFiniteDifferences) {
  const Memory memory;
  for (int kind = 0; kind < 12; ++kind) {
    LinearCase c{.cu_seqlens = {0, 3, 8},
                 .decay = std::array{Decay::none, Decay::scalar, Decay::diagonal}[static_cast<std::size_t>(kind % 3)]};
    c.heads = 1, c.bidirectional = kind % 2 == 0, c.normalise = kind / 3 % 2 == 0;
    const LinearOracle o = make_linear_oracle(c, memory);
    const Tensor out = Tensor::zeros(o.out.shape(), DType::f64, memory);
    const PairwiseAttention pairs = pairwise(c, o);
    Tensor gradients[4] = {Tensor::zeros(o.q.shape(), DType::f64, memory), Tensor::zeros(o.k.shape(), DType::f64, memory),
                           Tensor::zeros(o.v.shape(), DType::f64, memory), Tensor()};
    if (c.decay != Decay::none) gradients[3] = Tensor::zeros(o.log_decay.shape(), DType::f64, memory);
    pairs.backward(o.dout, gradients[0], gradients[1], gradients[2], gradients[3].view());
    const auto loss = [&] {
      pairs.forward(out);
      double sum = 0;
      for (std::size_t i = 0; i < out.view().span<double>().size(); ++i)
        sum += out.view().span<double>()[i] * o.dout.view().span<double>()[i];
      return sum;
    };
    const Tensor* const inputs[4] = {&o.q, &o.k, &o.v, &o.log_decay};
    for (std::size_t tensor = 0; tensor < 4; ++tensor) {
      if (inputs[tensor]->empty()) continue;
      const auto values = inputs[tensor]->view().span<double>(), derivative = gradients[tensor].view().span<double>();
      for (std::size_t i = 0; i < values.size(); ++i) {
        constexpr double kStep = 1e-5;
        const double value = values[i];
        values[i] = value + kStep;
        const double above = loss();
        values[i] = value - kStep;
        const double below = loss();
        values[i] = value;
        EXPECT_NEAR((above - below) / (2 * kStep), derivative[i], 1e-7 * std::max(1.0, std::abs(derivative[i]))) << to_string(c) << tensor;
      }
    }
  }
}

TEST(LinearAttention, PassesThroughAnEmptySequence) {
  for (const LinearAttentionOptions& options : linear_variants()) {
    LinearCase c{.cu_seqlens = {0}, .delta_rule = options.keep_transitions, .options = options};
    expect_matches_one_rank(3, c, DType::f64, 0);
    c.bidirectional = c.normalise = !c.delta_rule;
    if (!options.keep_transitions) expect_matches_one_rank(3, c, DType::f64, 0);
  }
}

TEST(LinearAttention, CountsUnitsAndFlops) {
  const Memory memory;
  const LinearCase c;
  const LinearOracle oracle = make_linear_oracle(c, memory);
  comm::run_thread_ranks(2, [&](comm::Communicator communicator) {
    RankLinearAttention attention(c, oracle, DType::f32, communicator);
    EXPECT_EQ(attention.attention().units(), communicator.rank() == 0 ? 2 : 1);
    attention.forward();
    const double forward = attention.attention().statistics().flops;
    EXPECT_GT(forward, 0);
    attention.backward();
    EXPECT_GT(attention.attention().statistics().flops, 3 * forward);
  });
}

template <class Error, class Body>
std::string message(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(LinearAttentionErrors, NothingGivenIsIgnored) {
  const Memory memory;
  const auto zeros = [&](std::int64_t width) { return Tensor::zeros({64, 3, width}, DType::f32, memory); };
  const Tensor q = zeros(4), v = zeros(3), out = zeros(3), gate = zeros(1), incoming = Tensor::zeros({1, 3, 12}, DType::f32, memory);
  LinearCase c{.decay = Decay::none};
  DistributedLinearAttention plain(problem_of(c, DType::f32, 1), {}, {}, memory);
  const auto forward = [&](DistributedLinearAttention& on, const LinearAttentionInputs& inputs) {
    return message<InvalidArgument>([&] { on.forward(inputs, {out, incoming}); });
  };
  EXPECT_EQ(forward(plain, {q, q, v}), "no error");
  EXPECT_NE(forward(plain, {q, q, v, gate}).find("log_decay is given, but problem.decay does not ask for it"), std::string::npos);
  EXPECT_NE(forward(plain, {q, q, v, {}, gate}).find("beta is given"), std::string::npos);
  EXPECT_NE(forward(plain, {q, v, v}).find("binds 'k' to a f32 tensor of shape"), std::string::npos);
  c.decay = Decay::scalar, c.delta_rule = true;
  DistributedLinearAttention gated(problem_of(c, DType::f32, 1), {}, {}, memory);
  EXPECT_NE(forward(gated, {q, q, v, gate}).find("beta is missing"), std::string::npos);
  EXPECT_NE(forward(gated, {q, q, v, {}, gate}).find("log_decay is missing"), std::string::npos);
  EXPECT_NE(message<InvalidArgument>([&] {
              gated.backward({q, q, v, gate, gate}, {v, incoming}, v, {q, q, v, gate});
            }).find("dbeta is missing"),
            std::string::npos);
  LinearCase both{.decay = Decay::none, .bidirectional = true};
  DistributedLinearAttention bidirectional(problem_of(both, DType::f32, 1), {}, {}, memory);
  EXPECT_NE(forward(bidirectional, {q, q, v}).find("following is missing, but problem.bidirectional asks for it"), std::string::npos);
  both.bidirectional = false, both.normalise = true;
  DistributedLinearAttention normalised(problem_of(both, DType::f32, 1), {}, {}, memory);
  EXPECT_NE(forward(normalised, {q, q, v}).find("normaliser is missing, but problem.normalise asks for it"), std::string::npos);
  DistributedLinearAttention keeping(problem_of(c, DType::f32, 1), {.keep_transitions = true}, {}, memory);
  EXPECT_EQ(keeping.transition_rows(), 0) << "one rank gathers nothing";
  EXPECT_NE(forward(keeping, {q, q, v, gate, gate}).find("transitions is missing, but options.keep_transitions asks"), std::string::npos);
}

TEST(LinearAttentionErrors, AScaleThatIsNoNumberIsRefused) {
  LinearAttentionProblem problem = problem_of(LinearCase{.decay = Decay::none}, DType::f32, 2);
  problem.scale = std::numeric_limits<double>::quiet_NaN();
  EXPECT_NE(message<InvalidArgument>([&] { make_plan(problem, {}, Pass::forward); }).find("scale is nan"), std::string::npos);
}

TEST(LinearAttentionErrors, RanksThatDisagreeAreTold) {
  const std::string told = message<InvalidArgument>([&] {
    comm::run_thread_ranks(2, [&](comm::Communicator communicator) {
      LinearAttentionProblem problem = problem_of({}, DType::f32, 2);
      if (communicator.rank() == 1) problem.scale = 0.5;
      DistributedLinearAttention(problem, {}, communicator, Memory());
    });
  });
  EXPECT_NE(told.find("linear attention: the problem: rank 1 of 2"), std::string::npos) << told;
}

}  // namespace
}  // namespace periplus::test
