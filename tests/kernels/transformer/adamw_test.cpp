#include "kernels/transformer.h"
#include "tests/kernels/values.h"

namespace periplus::kernels {
namespace {

using namespace periplus::test;

template <class T>
struct Case {
  std::vector<Sum<T>> master, m, v, gradient;
  std::vector<T> working;
  AdamwOptions options;
  Stream stream;

  explicit Case(std::int64_t count)
      : master(random_values<Sum<T>>(count, 1)),
        m(master.size()),
        v(master.size()),
        gradient(random_values<Sum<T>>(count, 2)),
        working(master.size()) {}
  Extents shape() const { return {static_cast<std::int64_t>(master.size())}; }
  void step() {
    adamw(view(master, shape()), view(m, shape()), view(v, shape()), view(gradient, shape()), view(working, shape()), options, stream);
  }
};

TEST(Adamw, FollowsTheRecurrenceByHand) {
  // One weight of 1 and gradients 0.5, then -1; lr 0.1, betas 0.9 and 0.99, eps 0, decay 0.1, clipping factor 2.
  // Step 1: g = 1, m = 0.1, v = 0.01, both corrected to 1: w = 1 - 0.1*0.1*1 - 0.1*1 = 0.89.
  // Step 2: g = -2, m = 0.09-0.2 = -0.11, v = 0.0099+0.04 = 0.0499; corrections 0.19 and 0.0199:
  //         w = 0.89 - 0.01*0.89 + 0.1*(0.11/0.19)/sqrt(0.0499/0.0199).
  Case<double> c(1);
  c.master = {1};
  c.gradient = {0.5};
  c.options = {.learning_rate = 0.1, .beta1 = 0.9, .beta2 = 0.99, .epsilon = 0, .weight_decay = 0.1, .step = 1, .gradient_scale = 2};
  c.step();
  EXPECT_NEAR(c.master[0], 0.89, 1e-14);
  EXPECT_NEAR(c.m[0], 0.1, 1e-15);
  EXPECT_NEAR(c.v[0], 0.01, 1e-15);
  c.gradient = {-1};
  c.options.step = 2;
  c.step();
  EXPECT_NEAR(c.master[0], 0.8811 + 0.1 * (0.11 / 0.19) / std::sqrt(0.0499 / 0.0199), 1e-14);
  EXPECT_EQ(c.working[0], c.master[0]);
}

TEST(Adamw, MatchesPlainRecurrenceOverSteps) {
  for_each_storage_type([]<class T>() {
    Case<T> c(501);
    c.options = {.learning_rate = 0.01, .weight_decay = 0.05, .gradient_scale = 0.7};
    auto master = widened(c.master);
    std::vector<double> m(master.size()), v(master.size());
    for (int step = 1; step <= 4; ++step) {
      c.gradient = random_values<Sum<T>>(501, static_cast<std::uint64_t>(10 + step));
      c.options.step = step;
      c.step();
      for (std::size_t i = 0; i < master.size(); ++i) {
        const double g = 0.7 * static_cast<double>(c.gradient[i]);
        m[i] = 0.9 * m[i] + 0.1 * g;
        v[i] = 0.95 * v[i] + 0.05 * g * g;
        const double mean = m[i] / (1 - std::pow(0.9, step)), square = v[i] / (1 - std::pow(0.95, step));
        master[i] -= 0.01 * (mean / (std::sqrt(square) + 1e-8) + 0.05 * master[i]);
      }
    }
    expect_close(c.master, master, 16 * rounding<Sum<T>>());
    expect_close(c.working, master, 1.01 * rounding<T>() + 16 * rounding<Sum<T>>());
    expect_close(c.v, v, 16 * rounding<Sum<T>>());
  });
}

TEST(Adamw, BitsDoNotDependOnThreads) {
  for_each_storage_type([]<class T>() {
    expect_same_on_all_teams([] {
      Case<T> c(200'001);
      c.step();
      return c.master;
    });
  });
}

TEST(Adamw, AcceptsNothingAndRefusesBadArgumentsByName) {
  Case<float>(0).step();
  Case<float> c(4);
  c.options.step = 0;
  expect_refused([&] { c.step(); }, {"step 0"});
  c.options = {.beta2 = 1.0};
  expect_refused([&] { c.step(); }, {"beta2 1"});
  c.options = {};
  c.m.pop_back();
  expect_refused(
      [&] { adamw(view(c.master, {4}), view(c.m, {3}), view(c.v, {4}), view(c.gradient, {4}), view(c.working, {4}), c.options, c.stream); },
      {"m has shape [3]", "[4]"});
  std::vector<double> wide(4);
  expect_refused(
      [&] { adamw(view(c.master, {4}), view(c.m, {4}), view(c.v, {4}), view(c.gradient, {4}), view(wide, {4}), c.options, c.stream); },
      {"master is f32", "working is f64"});
}

TEST(SumOfSquares, MatchesPlainSumAndIgnoresThreads) {
  for_each_storage_type([]<class T>() {
    for (const std::int64_t count : {0, 1, 15, 4096, 4097, 300'000}) {
      const auto values = random_values<T>(count, 3);
      const auto wide = widened(values);
      expect_same_on_all_teams([&] { return std::vector<double>{sum_of_squares(view(values, {count}), Stream())}; });
      EXPECT_NEAR(sum_of_squares(view(values, {count}), Stream()), dot(wide, wide), 1e-12 * static_cast<double>(count + 1));
    }
  });
}

TEST(AddInPlace, AddsElementwise) {
  for_each_storage_type([]<class T>() {
    const auto x = random_values<T>(3 * 71, 1);
    auto y = random_values<T>(3 * 71, 2);
    auto expected = widened(y);
    for (std::size_t i = 0; i < x.size(); ++i) expected[i] += static_cast<double>(x[i]);
    const Stream stream;
    add_in_place(view(x, {3, 71}), view(y, {3, 71}), stream);
    expect_close(y, expected, 1.01 * rounding<T>());
    expect_refused([&] { add_in_place(view(x, {3, 71}), view(y, {71, 3}), stream); }, {"add_in_place", "[71, 3]", "[3, 71]"});
  });
}

}  // namespace
}  // namespace periplus::kernels
