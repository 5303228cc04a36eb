// What apply and verify run with --device cuda, on the device of fake_device.cpp: ranks that are threads and share it.
#include <gtest/gtest.h>

#include "launch/attention_check.h"
#include "runtime/cuda/device.h"

namespace periplus::launch {
namespace {

constexpr Device kDevice{DeviceKind::cuda, 0};

TEST(NumericCheckOnADevice, AgreesWithTheReferenceOnTheHost) {
  ASSERT_EQ(cuda::properties(0).name, "fake");
  for (const VerificationCase& problem_case : verification_cases()) {
    for (const int ranks : {1, 2, 4}) {
      for (const std::vector<std::int64_t>& borders : verification_documents(ranks)) {
        const AttentionProblem problem = verification_problem(LayoutKind::zigzag, problem_case, borders, ranks);
        const NumericCheck check = compare_with_reference(problem, {.strategy = "ring"}, kDevice);
        EXPECT_TRUE(check.ok()) << problem_case.name() << ", " << ranks << " ranks, " << borders.back()
                                << " tokens: " << check.forward_error << " forward, " << check.backward_error << " backward";
      }
    }
  }
}

}  // namespace
}  // namespace periplus::launch
