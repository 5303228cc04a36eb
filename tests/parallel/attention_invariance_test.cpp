// What must not change the result of distributed attention: strategy, layout, number of ranks, order of documents, timing,
// and other attentions on the same group.
#include <memory>
#include <random>

#include <gtest/gtest.h>

#include "runtime/comm/thread_transport.h"
#include "tests/parallel/attention_cases.h"
#include "tests/parallel/delayed_transport.h"

namespace periplus::test {
namespace {

AttentionResults empty_results(const AttentionOracle& oracle, const Memory& memory) {
  const auto like = [&](const Tensor& tensor) { return Tensor::zeros(tensor.shape(), DType::f64, memory); };
  return {like(oracle.out), like(oracle.lse), like(oracle.dq), like(oracle.dk), like(oracle.dv), like(oracle.dsink)};
}

/// Results of all ranks in one place; the oracle gives the inputs.
AttentionResults run_on(int ranks, const AttentionCase& c, const AttentionOracle& oracle, const Memory& memory) {
  AttentionResults results = empty_results(oracle, memory);
  comm::run_thread_ranks(ranks, [&](comm::Communicator communicator) {
    RankAttention attention(c, oracle, DType::f64, communicator);
    attention.forward();
    attention.backward();
    attention.errors();
    attention.store(results);
  });
  return results;
}

/// Documents of 1 to 40 tokens; heads that no rank count above 2 divides.
AttentionCase random_case(std::mt19937_64& random) {
  const auto below = [&](std::uint64_t n) { return static_cast<std::int64_t>(random() % n); };
  AttentionCase c;
  c.cu_seqlens = {0};
  for (std::int64_t documents = 2 + below(4); documents > 0; --documents) c.cu_seqlens.push_back(c.cu_seqlens.back() + 1 + below(40));
  const MaskSpec masks[] = {{true, -1, -1, 0}, {false, -1, -1, 0}, {true, 6, -1, 2}, {false, 4, 3, 0}};
  c.mask = masks[below(4)];
  const std::pair<int, int> heads[] = {{14, 7}, {10, 2}, {8, 8}, {14, 1}};
  std::tie(c.q_heads, c.kv_heads) = heads[below(4)];
  c.sink = below(2) == 0, c.lse_gradient = below(2) == 0, c.softcap = below(3) == 0 ? 4 : 0;
  c.seed = random();
  return c;
}

TEST(AttentionInvariance, StrategyLayoutAndRanksDoNotChangeTheResult) {
  std::mt19937_64 random(5);
  int runs = 0;
  for (int problem = 0; problem < 4; ++problem) {
    AttentionCase c = random_case(random);
    const Memory memory;
    const AttentionOracle oracle = make_oracle(c, memory);
    const AttentionResults alone = run_on(1, c, oracle, memory);
    for (const AttentionOptions& options : variants()) {
      for (int attempt = 0; attempt < 4; ++attempt) {
        const int ranks = static_cast<int>(2 + random() % 5);
        c.layout = kLayoutKinds[random() % kLayoutKinds.size()];
        c.options = options;
        if (!refusal(c, ranks).empty()) continue;
        const AttentionErrors change = differences(run_on(ranks, c, oracle, memory), alone);
        EXPECT_LE(change.forward, 1e-12) << ranks << " ranks " << to_string(c);
        EXPECT_LE(change.backward, 1e-11) << ranks << " ranks " << to_string(c);
        ++runs;
      }
    }
  }
  RecordProperty("runs", runs);
  EXPECT_GE(runs, 100);
}

/// rows[i]: where global row i of the reordered sequence was.
void take_rows(const Tensor& from, const Tensor& to, const std::vector<std::int64_t>& rows) {
  for (std::size_t i = 0; i < rows.size(); ++i) copy(from.view().slice(0, rows[i], 1), to.view().slice(0, static_cast<std::int64_t>(i), 1));
}

struct Reordered {
  AttentionCase c;
  AttentionOracle oracle;  ///< Inputs, and the results that the original's demand.
};
Reordered with_documents_reversed(const AttentionCase& c, const AttentionOracle& original, const Memory& memory) {
  Reordered r{c, make_oracle(c, memory)};
  r.c.cu_seqlens = {0};
  std::vector<std::int64_t> rows;
  for (std::size_t d = c.cu_seqlens.size() - 1; d > 0; --d) {
    for (std::int64_t row = c.cu_seqlens[d - 1]; row < c.cu_seqlens[d]; ++row) rows.push_back(row);
    r.c.cu_seqlens.push_back(std::ssize(rows));
  }
  for (Tensor AttentionOracle::*input :
       {&AttentionOracle::q, &AttentionOracle::k, &AttentionOracle::v, &AttentionOracle::dout, &AttentionOracle::dlse})
    take_rows(original.*input, r.oracle.*input, rows);
  for (Tensor AttentionResults::*result :
       {&AttentionResults::out, &AttentionResults::lse, &AttentionResults::dq, &AttentionResults::dk, &AttentionResults::dv})
    take_rows(original.*result, r.oracle.*result, rows);
  return r;
}

class StrategyInvariance : public testing::TestWithParam<AttentionOptions> {};

TEST_P(StrategyInvariance, OrderOfDocumentsDoesNotChangeTheResult) {
  std::mt19937_64 random(17);
  int runs = 0;
  for (int attempt = 0; attempt < 30 && runs < 5; ++attempt) {
    AttentionCase c = random_case(random);
    const int ranks = static_cast<int>(2 + random() % 4);
    c.layout = kLayoutKinds[random() % kLayoutKinds.size()];
    c.options = GetParam();
    if (!refusal(c, ranks).empty()) continue;
    const Memory memory;
    AttentionOracle forwards = make_oracle(c, memory);
    static_cast<AttentionResults&>(forwards) = run_on(ranks, c, forwards, memory);
    const Reordered backwards = with_documents_reversed(c, forwards, memory);
    if (!refusal(backwards.c, ranks).empty()) continue;
    const AttentionErrors change = differences(run_on(ranks, backwards.c, backwards.oracle, memory), backwards.oracle);
    EXPECT_LE(change.forward, 1e-12) << ranks << " ranks " << to_string(c);
    EXPECT_LE(change.backward, 1e-11) << ranks << " ranks " << to_string(c);
    ++runs;
  }
  EXPECT_GE(runs, 2);
}

std::vector<std::vector<char>> bytes_of_ranks(int ranks, const AttentionCase& c, const AttentionOracle& oracle, std::uint64_t delay_seed) {
  std::vector<std::vector<char>> bytes(static_cast<std::size_t>(ranks));
  comm::run_thread_ranks(ranks, [&](comm::Communicator communicator) {
    const auto rank = static_cast<std::size_t>(communicator.rank());
    if (delay_seed != 0) communicator = comm::Communicator(std::make_shared<comm::DelayedTransport>(communicator, delay_seed + rank));
    bytes[rank] = run_for_bytes(c, oracle, DType::f32, communicator);
  });
  return bytes;
}

TEST_P(StrategyInvariance, RandomDelaysChangeNoBit) {
  for (const int ranks : {3, 4}) {
    for (const AttentionCase& c : sample(ranks, GetParam(), 2)) {
      const Memory memory;
      const AttentionOracle oracle = make_oracle(c, memory);
      const auto undisturbed = bytes_of_ranks(ranks, c, oracle, 0);
      for (std::uint64_t seed = 100; seed < 1100; seed += 100) {
        EXPECT_EQ(undisturbed, bytes_of_ranks(ranks, c, oracle, seed)) << ranks << " ranks, delays " << seed << ", " << to_string(c);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Strategies, StrategyInvariance, testing::ValuesIn(variants()), name_of_param);

TEST(AttentionInvariance, TwoModelsTakeTurnsOnOneGroup) {
  AttentionCase wide, narrow;
  wide.cu_seqlens = {0, 40, 97}, wide.q_heads = 8, wide.kv_heads = 2, wide.options.strategy = "ulysses";
  narrow.cu_seqlens = {0, 61}, narrow.q_heads = 3, narrow.kv_heads = 3, narrow.options.strategy = "token_ring";
  const Memory memory;
  const AttentionOracle of_wide = make_oracle(wide, memory), of_narrow = make_oracle(narrow, memory);
  comm::run_thread_ranks(3, [&](comm::Communicator communicator) {
    RankAttention first(wide, of_wide, DType::f64, communicator), second(narrow, of_narrow, DType::f64, communicator);
    for (int turn = 0; turn < 3; ++turn) {
      first.forward(), second.forward();
      second.backward(), first.backward();
      for (RankAttention* attention : {&first, &second}) {
        const AttentionErrors errors = attention->errors();
        EXPECT_LE(errors.forward, 1e-12);
        EXPECT_LE(errors.backward, 1e-11);
      }
    }
  });
}

}  // namespace
}  // namespace periplus::test
