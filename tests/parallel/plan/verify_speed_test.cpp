// How long it takes to make and to prove the plans of many ranks and documents.
#include <algorithm>
#include <ctime>
#include <iostream>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "parallel/plan/verify.h"
#include "tests/parallel/plan/plan_cases.h"

namespace periplus::plan {
namespace {

#if defined(NDEBUG) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
constexpr bool kTimesCount = true;
#else
constexpr bool kTimesCount = false;
#endif

/// 64 ranks, 100 documents of 1 to 2000 tokens: every rank has some 200 segments, unless the strategy has a layout of its own.
AttentionProblem many_documents(const AttentionOptions& options) {
  std::mt19937_64 random(7);
  test::Lengths lengths(100);
  for (std::int64_t& length : lengths) length = static_cast<std::int64_t>(1 + random() % 2000);
  const auto layout = options.strategy == "balanced_helper" ? LayoutKind::contiguous : LayoutKind::document_zigzag;
  const MaskSpec mask = options.strategy == "halo" ? MaskSpec{true, 1000, -1, 0} : MaskSpec{};
  const bool many_heads = options.strategy == "ulysses" && options.pieces > 1;
  return test::ring_problem(layout, 64, test::borders(lengths), mask, many_heads ? 128 : 64, many_heads ? 128 : 8);
}

/// "auto" is left out: it simulates every strategy first.
std::vector<AttentionOptions> timed_variants() {
  std::vector<AttentionOptions> all = test::variants();
  std::erase_if(all, [](const AttentionOptions& options) { return options.strategy == "auto"; });
  return all;
}

/// Of the processor, which other processes disturb less than the wall clock.
template <class Fn>
double milliseconds(Fn&& fn) {
  const std::clock_t start = std::clock();
  fn();
  return 1e3 * static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
}

class VerifySpeed : public testing::TestWithParam<AttentionOptions> {};

TEST_P(VerifySpeed, ManyRanksAndDocumentsTakeAFractionOfASecond) {
  const AttentionProblem problem = many_documents(GetParam());
  ASSERT_EQ(test::refusal(problem, GetParam()), "");
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    std::optional<Plan> plan;
    Verdict verdict;
    const double making = milliseconds([&] { plan = make_plan(problem, GetParam(), pass); });
    const double proving = milliseconds([&] { verdict = verify(*plan); });
    std::cout << fmt::format("{:<32} {:<8}  plan {:6.1f} ms  verify {:6.1f} ms\n", test::name_of(GetParam()),
                             pass == Pass::forward ? "forward" : "backward", making, proving);
    ASSERT_TRUE(verdict.ok()) << verdict.failures.front();
    // Three times what it takes, so that a busy machine does not matter.
    if (kTimesCount) {
      EXPECT_LT(making + proving, 900);
    }
  }
}

/// Stripes of many documents lie between each other's rows: pair by pair they would be 400,000 bands.
TEST(VerifySpeedOfStripes, ManyDocumentsAreBuiltInMilliseconds) {
  AttentionProblem problem = many_documents({});
  const std::vector<std::int64_t> borders(problem.layout.cu_seqlens().begin(), problem.layout.cu_seqlens().end());
  problem.layout = SequenceLayout::make(LayoutKind::striped, 64, borders);
  for (const std::string strategy : {"ulysses", "usp", "ring", "gather_kv"}) {
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      Program program;
      double best = 1e9;
      for (int sample = 0; sample < 3; ++sample)
        best = std::min(best, milliseconds([&] { program = make_program(problem, {.strategy = strategy}, pass, 1); }));
      std::cout << fmt::format("{:<32} {:<8}  program {:6.2f} ms, {} bands\n", strategy, pass == Pass::forward ? "forward" : "backward",
                               best, program.bands.size());
      if (kTimesCount && strategy == "ulysses") {
        EXPECT_LT(best, 15);
        EXPECT_EQ(program.bands.size(), 100u);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Strategies, VerifySpeed, testing::ValuesIn(timed_variants()), test::name_of_param);

}  // namespace
}  // namespace periplus::plan
