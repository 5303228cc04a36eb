#include "kernels/transformer.h"
#include "tests/kernels/values.h"

namespace periplus::kernels {
namespace {

using namespace periplus::test;

constexpr double kEps = 1e-5;

struct Plain {
  std::vector<double> y, rstd;
};

Plain plain_forward(const std::vector<double>& x, const std::vector<double>& gamma) {
  const std::size_t channels = gamma.size();
  Plain plain{std::vector<double>(x.size()), {}};
  for (std::size_t row = 0; row < x.size(); row += channels) {
    double squares = 0;
    for (std::size_t c = 0; c < channels; ++c) squares += x[row + c] * x[row + c];
    plain.rstd.push_back(1 / std::sqrt(squares / static_cast<double>(channels) + kEps));
    for (std::size_t c = 0; c < channels; ++c) plain.y[row + c] = x[row + c] * plain.rstd.back() * gamma[c];
  }
  return plain;
}

template <class T>
struct Case {
  std::int64_t rows, channels;
  std::vector<T> x, gamma, dy, y, dx;
  std::vector<Sum<T>> rstd, dgamma;
  Stream stream;

  Case(std::int64_t row_count, std::int64_t channel_count)
      : rows(row_count),
        channels(channel_count),
        x(random_values<T>(rows * channels, 1)),
        gamma(random_values<T>(channels, 2)),
        dy(random_values<T>(rows * channels, 3)),
        y(x.size()),
        dx(random_values<T>(rows * channels, 4)),
        rstd(static_cast<std::size_t>(rows)),
        dgamma(random_values<Sum<T>>(channels, 5)) {}
  void forward() {
    rms_norm(view(x, {rows, channels}), view(gamma, {channels}), kEps, view(y, {rows, channels}), view(rstd, {rows}), stream);
  }
  void backward(Update update) {
    rms_norm_backward(view(dy, {rows, channels}), view(x, {rows, channels}), view(gamma, {channels}), view(rstd, {rows}),
                      view(dx, {rows, channels}), update, view(dgamma, {channels}), stream);
  }
};

TEST(RmsNorm, MatchesPlainFormula) {
  for_each_storage_type([]<class T>() {
    for (const std::int64_t channels : {1, 7, 16, 100}) {
      Case<T> c(5, channels);
      c.forward();
      const Plain plain = plain_forward(widened(c.x), widened(c.gamma));
      expect_close(c.y, plain.y, 2 * rounding<T>() + 16 * rounding<Sum<T>>());
      expect_close(c.rstd, plain.rstd, 16 * rounding<Sum<T>>());
    }
  });
}

TEST(RmsNorm, BackwardMatchesFiniteDifferences) {
  Case<double> c(3, 19);
  c.forward();
  const auto before_dgamma = c.dgamma;
  c.backward(Update::overwrite);
  const auto objective = [&] { return dot(plain_forward(c.x, c.gamma).y, c.dy); };
  expect_close(c.dx, numeric_gradient(c.x, objective), 1e-8);
  auto expected = numeric_gradient(c.gamma, objective);
  for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += before_dgamma[i];
  expect_close(c.dgamma, expected, 1e-8);
}

TEST(RmsNorm, BackwardOverwritesDyInPlace) {
  for_each_storage_type([]<class T>() {
    Case<T> apart(70, 33), in_place(70, 33);
    apart.forward();
    in_place.forward();
    apart.backward(Update::overwrite);
    rms_norm_backward(view(in_place.dy, {70, 33}), view(in_place.x, {70, 33}), view(in_place.gamma, {33}), view(in_place.rstd, {70}),
                      view(in_place.dy, {70, 33}), Update::overwrite, view(in_place.dgamma, {33}), in_place.stream);
    EXPECT_EQ(widened(in_place.dy), widened(apart.dx));
    EXPECT_EQ(in_place.dgamma, apart.dgamma);
  });
}

TEST(RmsNorm, BackwardAccumulatesIntoDx) {
  for_each_storage_type([]<class T>() {
    Case<T> over(70, 33), onto(70, 33);
    const auto before = onto.dx;
    over.forward();
    onto.forward();
    over.backward(Update::overwrite);
    onto.backward(Update::accumulate);
    auto expected = widened(before);
    for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += static_cast<double>(over.dx[i]);
    expect_close(onto.dx, expected, 4 * rounding<T>());
  });
}

template <class T>
void check_narrow_backward() {
  Case<T> narrow(130, 48);
  narrow.forward();
  narrow.backward(Update::overwrite);
  Case<double> wide(130, 48);
  wide.x = widened(narrow.x);
  wide.gamma = widened(narrow.gamma);
  wide.dy = widened(narrow.dy);
  wide.dgamma = widened(Case<T>(130, 48).dgamma);
  wide.forward();
  wide.backward(Update::overwrite);
  // dx: f32 arithmetic, one rounding to T. dgamma: f32 sum of 130 terms of size 1.
  expect_close(narrow.dx, wide.dx, rounding<T>() + 64 * rounding<float>());
  expect_close(narrow.dgamma, wide.dgamma, 130 * rounding<float>());
}

TEST(RmsNorm, NarrowTypesFollowF64) {
  check_narrow_backward<float>();
  check_narrow_backward<bfloat16>();
}

TEST(RmsNorm, BitsDoNotDependOnThreads) {
  for_each_storage_type([]<class T>() {
    expect_same_on_all_teams([] {
      Case<T> c(1100, 120);
      c.forward();
      c.backward(Update::accumulate);
      auto all = widened(c.dgamma);
      for (const auto& part : {widened(c.y), widened(c.dx), widened(c.rstd)}) all.insert(all.end(), part.begin(), part.end());
      return all;
    });
  });
}

TEST(RmsNorm, AcceptsNoTokens) {
  Case<float> c(0, 8);
  const auto before = c.dgamma;
  c.forward();
  c.backward(Update::overwrite);
  EXPECT_TRUE(same_bits(before, c.dgamma));
}

TEST(RmsNorm, RefusesWrongShapesByName) {
  Case<float> c(4, 8);
  expect_refused(
      [&] {
        rms_norm(view(c.x, {4, 8}), view(c.gamma, {4}), kEps, view(c.y, {4, 8}), view(c.rstd, {4}), c.stream);
      },
      {"rms_norm", "gamma", "[4]", "[8]"});
  expect_refused(
      [&] {
        rms_norm(view(c.x, {32}), view(c.gamma, {8}), kEps, view(c.y, {4, 8}), view(c.rstd, {4}), c.stream);
      },
      {"x", "[32]", "2 dimensions"});
  std::vector<double> wide(4);
  expect_refused(
      [&] {
        rms_norm(view(c.x, {4, 8}), view(c.gamma, {8}), kEps, view(c.y, {4, 8}), view(wide, {4}), c.stream);
      },
      {"rstd", "f64", "f32"});
}

}  // namespace
}  // namespace periplus::kernels
