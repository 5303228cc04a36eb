#include "tests/kernels/attention_isolation.h"

// NaN and infinity stay in the rows that meet them, at every level this CPU has.
namespace periplus::kernels {
namespace {

using test::Attention;
using test::Case;
using test::levels;
using test::Poison;

TEST_F(Attention, NaNAndInfinityReachOnlyTheRowsThatMeetThem) {
  const auto run = [](auto& pass, const Case& c) {
    pass.forward(c);
    pass.backward(c);
  };
  for (const CpuLevel level : levels()) {
    set_cpu_level(level);
    SCOPED_TRACE(to_string(level));
    test::for_each_poison([&](const Case& c, const Poison& poison) {
      test::expect_poison_isolated<float>(c, poison, run);
      test::expect_poison_isolated<bfloat16>(c, poison, run);
      test::expect_poison_isolated<float16>(c, poison, run);
    });
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace periplus::kernels
