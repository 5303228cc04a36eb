// Plans of linear attention that must be proven.
#include <ctime>
#include <iostream>
#include <random>
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
    std::vector<LinearCase> cases = linear_sweep(ranks, GetParam());
    for (const LinearCase& c : extended_sweep(ranks, GetParam())) cases.push_back(c);
    for (const LinearCase& c : cases) {
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

/// 64 ranks of two units, 100 documents of 1 to 2000 tokens, 64 heads.
TEST_P(VerifyLinear, ManyRanksAndDocumentsTakeAFractionOfASecond) {
  std::mt19937_64 random(7);
  std::vector<std::int64_t> cu{0};
  for (int d = 0; d < 100; ++d) cu.push_back(cu.back() + static_cast<std::int64_t>(1 + random() % 2000));
  LinearAttentionProblem problem{SequenceLayout::make(LayoutKind::zigzag, 64, cu)};
  problem.heads = 64, problem.decay = Decay::diagonal, problem.delta_rule = GetParam().keep_transitions;
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    const std::clock_t start = std::clock();
    const Plan plan = make_plan(problem, GetParam(), pass);
    const std::clock_t made = std::clock();
    const Verdict verdict = verify(plan);
    const auto milliseconds = [](std::clock_t ticks) { return 1e3 * static_cast<double>(ticks) / CLOCKS_PER_SEC; };
    const double making = milliseconds(made - start), proving = milliseconds(std::clock() - made);
    std::cout << fmt::format("{:<8} pieces {}  {:<8}  plan {:6.1f} ms  verify {:6.1f} ms\n", GetParam().strategy, GetParam().pieces,
                             pass == Pass::forward ? "forward" : "backward", making, proving);
    ASSERT_TRUE(verdict.ok()) << verdict.failures.front();
#if defined(NDEBUG) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    EXPECT_LT(making + proving, 900);
#endif
  }
}

INSTANTIATE_TEST_SUITE_P(Strategies, VerifyLinear, testing::ValuesIn(linear_variants()), name_of_linear_param);

}  // namespace
}  // namespace periplus::plan
