// Plans of linear attention that must be proven.
#include <array>
#include <string>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "parallel/plan/verify.h"
#include "parallel/units.h"
#include "tests/parallel/linear_cases.h"

namespace periplus::plan {
namespace {

using namespace test;

class VerifyLinear : public testing::TestWithParam<LinearAttentionOptions> {};

TEST_P(VerifyLinear, ProvesEveryPlan) {
  for (int ranks = 1; ranks <= 64; ranks = ranks < 16 ? ranks + 1 : 4 * ranks) {
    for (const LinearCase& c : linear_sweep(ranks, GetParam())) {
      if (ranks > 8 && c.options.any_layout) continue;  // thousands of units
      for (const DType dtype : {DType::f64, DType::bf16}) {
        for (const Pass pass : {Pass::forward, Pass::backward}) {
          const Plan plan = make_plan(problem_of(c, dtype, ranks), c.options, pass);
          const Verdict verdict = verify(plan);
          ASSERT_TRUE(verdict.ok()) << ranks << " ranks, " << to_string(c) << ": " << verdict.failures.front();
          ASSERT_EQ(verdict.bytes_sent, plan.claim.bytes_sent);
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Strategies, VerifyLinear, testing::ValuesIn(linear_variants()), name_of_linear_param);

}  // namespace
}  // namespace periplus::plan
