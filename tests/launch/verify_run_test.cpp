#include "launch/verify_run.h"

#include <gtest/gtest.h>

#include "runtime/error.h"

namespace periplus::launch {
namespace {

/// The ring on one layout and mask, whose comparison with fp64 ends as told.
VerifySubject subject_that(const std::function<NumericCheck()>& compare) {
  VerifySubject subject = verify_subjects({.strategy = "ring", .layout = "zigzag", .mask = 1}).front();
  subject.problem = [make = subject.problem, compare](std::span<const std::int64_t> borders, int ranks) {
    VerifySubject::Problem problem = make(borders, ranks);
    problem.compare = [compare](const VerifySubject::Strategy&, Device) { return compare(); };
    return problem;
  };
  return subject;
}

VerifyEntry verified(const std::function<NumericCheck()>& compare) {
  Prover prover;
  const std::vector<VerifyEntry> entries = verify_subject(subject_that(compare), {2, 3}, "2-3", Device{}, prover);
  EXPECT_EQ(entries.size(), 1u);
  return entries.front();
}

TEST(VerifyRun, SaysWhatADeviceLacksBesideTheProof) {
  const VerifyEntry entry = verified([]() -> NumericCheck { throw BackendUnavailable("no kernels for this yet"); });
  EXPECT_TRUE(entry.tally.ok());
  EXPECT_GT(entry.tally.plans, 0);
  EXPECT_EQ(entry.tally.numeric, 0);
  const std::vector<std::string> lines = verify_lines({}, entry);
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_TRUE(lines[0].ends_with("  ok")) << lines[0];
  EXPECT_EQ(lines[1], "    proven, but not compared with fp64: no kernels for this yet");
  EXPECT_EQ(to_json(entry).at("unavailable"), "no kernels for this yet");
}

TEST(VerifyRun, CountsComparisonsAndThoseThatFail) {
  const VerifyEntry good = verified([] { return NumericCheck{}; });
  EXPECT_TRUE(good.tally.ok());
  EXPECT_GT(good.tally.numeric, 0);
  EXPECT_EQ(verify_lines({}, good).size(), 1u);
  const VerifyEntry bad = verified([] { return NumericCheck{.forward_error = 1}; });
  EXPECT_FALSE(bad.tally.ok());
  EXPECT_EQ(bad.tally.failures, bad.tally.numeric);
  EXPECT_TRUE(verify_lines({}, bad).front().ends_with(" FAILED"));
}

}  // namespace
}  // namespace periplus::launch
