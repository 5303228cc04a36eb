#include "parallel/linear_attention.h"

#include <atomic>

#include <gtest/gtest.h>

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

INSTANTIATE_TEST_SUITE_P(Strategies, LinearStrategy, testing::ValuesIn(linear_variants()), name_of_linear_param);

}  // namespace
}  // namespace periplus::test
