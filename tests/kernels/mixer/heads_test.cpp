#include "kernels/mixer.h"
#include "tests/kernels/values.h"

namespace periplus::kernels {
namespace {

using namespace periplus::test;

constexpr double kEpsilon = 1e-6;

/// Operands [N,H,D] that are columns of a wider matrix, as heads of one projection are.
template <class T>
struct Case {
  std::int64_t rows, heads, width, row_stride = heads * width + 3;
  std::vector<T> x, dy, y, dx, skip;
  std::vector<Sum<T>> factor, dfactor, dskip;
  Stream stream;

  Case(std::int64_t row_count, std::int64_t head_count, std::int64_t head_width)
      : rows(row_count),
        heads(head_count),
        width(head_width),
        x(random_values<T>(rows * row_stride, 1)),
        dy(random_values<T>(rows * row_stride, 2)),
        y(random_values<T>(rows * row_stride, 3)),
        dx(random_values<T>(rows * row_stride, 4)),
        skip(random_values<T>(heads, 5)),
        factor(random_values<Sum<T>>(rows * heads, 6)),
        dfactor(factor.size()),
        dskip(skip.size(), 1) {}

  TensorView of(std::vector<T>& values) const {
    return {reinterpret_cast<std::byte*>(values.data()), dtype_of<T>, {rows, heads, width}, {row_stride, width, 1}};
  }
  Extents per_head() const { return {rows, heads}; }
  /// sum of dy y over the operand, the columns between heads left out.
  double objective() {
    double sum = 0;
    for (std::int64_t n = 0; n < rows; ++n) {
      for (std::int64_t i = 0; i < heads * width; ++i) {
        const auto at = static_cast<std::size_t>(n * row_stride + i);
        sum += static_cast<double>(dy[at]) * static_cast<double>(y[at]);
      }
    }
    return sum;
  }
};

/// Of columns that are no part of the operand a numeric gradient is zero; they keep `before` in the analytic one.
template <class T>
void expect_gradient(const Case<T>& c, const std::vector<T>& dx, const std::vector<T>& before, std::vector<double> numeric,
                     double tolerance) {
  for (std::int64_t n = 0; n < c.rows; ++n) {
    for (std::int64_t i = c.heads * c.width; i < c.row_stride; ++i) {
      const auto at = static_cast<std::size_t>(n * c.row_stride + i);
      numeric[at] = static_cast<double>(before[at]);
    }
  }
  expect_close(dx, numeric, tolerance);
}

TEST(L2Norm, RowsHaveLengthOneAndZeroStaysZero) {
  Case<double> c(3, 2, 5);
  std::fill(c.x.begin(), c.x.begin() + 5, 0.0);
  l2_norm(c.of(c.x), kEpsilon, c.of(c.y), c.stream);
  EXPECT_EQ(c.y[0], 0);
  double squares = 0;
  for (std::size_t i = 5; i < 10; ++i) squares += c.y[i] * c.y[i];
  EXPECT_NEAR(squares, 1, 1e-5);
}

TEST(L2Norm, BackwardMatchesFiniteDifferences) {
  Case<double> c(3, 2, 5);
  const auto before = c.dx;
  l2_norm_backward(c.of(c.dy), c.of(c.x), kEpsilon, c.of(c.dx), c.stream);
  expect_gradient(c, c.dx, before,
                  numeric_gradient(c.x,
                                   [&] {
                                     l2_norm(c.of(c.x), kEpsilon, c.of(c.y), c.stream);
                                     return c.objective();
                                   }),
                  1e-8);
}

TEST(ScaleHeads, BackwardMatchesFiniteDifferences) {
  Case<double> c(4, 3, 5);
  const auto before = c.dx;
  scale_heads_backward(c.of(c.dy), c.of(c.x), view(c.factor, c.per_head()), c.of(c.dx), view(c.dfactor, c.per_head()), c.stream);
  const auto objective = [&] {
    scale_heads(c.of(c.x), view(c.factor, c.per_head()), c.of(c.y), c.stream);
    return c.objective();
  };
  expect_gradient(c, c.dx, before, numeric_gradient(c.x, objective), 1e-8);
  expect_close(c.dfactor, numeric_gradient(c.factor, objective), 1e-8);
}

TEST(AddSkip, BackwardMatchesFiniteDifferencesAndAccumulates) {
  Case<double> c(4, 3, 5);
  const auto before = c.dx, start = c.y;
  add_skip_backward(c.of(c.dy), c.of(c.x), view(c.skip, {c.heads}), c.of(c.dx), view(c.dskip, {c.heads}), c.stream);
  const auto objective = [&] {
    c.y = start;
    add_skip(c.of(c.x), view(c.skip, {c.heads}), c.of(c.y), c.stream);
    return c.objective();
  };
  auto dx = numeric_gradient(c.x, objective), dskip = numeric_gradient(c.skip, objective);
  for (std::size_t i = 0; i < dx.size(); ++i) dx[i] += before[i];
  for (double& value : dskip) value += 1;
  expect_gradient(c, c.dx, before, dx, 1e-8);
  expect_close(c.dskip, dskip, 1e-8);
}

TEST(SumHeads, AddsEveryHead) {
  Case<double> c(4, 3, 5);
  std::vector<double> sum(20), expected(20, 0.0);
  sum_heads(c.of(c.x), view(sum, {4, 1, 5}), c.stream);
  for (std::size_t n = 0; n < 4; ++n) {
    for (std::size_t i = 0; i < 15; ++i) expected[n * 5 + i % 5] += c.x[n * 18 + i];
  }
  expect_close(sum, expected, 1e-15);
}

template <class T>
void run_all(Case<T>& c) {
  const TensorView factor = view(c.factor, c.per_head()), dfactor = view(c.dfactor, c.per_head());
  l2_norm(c.of(c.x), kEpsilon, c.of(c.y), c.stream);
  scale_heads(c.of(c.y), factor, c.of(c.y), c.stream);
  add_skip(c.of(c.x), view(c.skip, {c.heads}), c.of(c.y), c.stream);
  scale_heads_backward(c.of(c.dy), c.of(c.x), factor, c.of(c.dx), dfactor, c.stream);
  add_skip_backward(c.of(c.dy), c.of(c.x), view(c.skip, {c.heads}), c.of(c.dx), view(c.dskip, {c.heads}), c.stream);
}

TEST(Heads, NarrowTypesFollowF64) {
  const auto check = []<class T>() {
    Case<T> narrow(40, 3, 33);
    Case<double> wide(40, 3, 33);
    wide.x = widened(narrow.x);
    wide.y = widened(narrow.y);
    wide.dy = widened(narrow.dy);
    wide.dx = widened(narrow.dx);
    wide.skip = widened(narrow.skip);
    wide.factor = widened(narrow.factor);
    run_all(narrow);
    run_all(wide);
    expect_close(narrow.y, wide.y, 4 * rounding<T>() + 64 * rounding<float>());
    expect_close(narrow.dx, wide.dx, 4 * rounding<T>() + 64 * rounding<float>(), 4);
    expect_close(narrow.dfactor, wide.dfactor, 1e-5, 10);
    expect_close(narrow.dskip, wide.dskip, 1e-5, 100);
    l2_norm_backward(narrow.of(narrow.dy), narrow.of(narrow.x), kEpsilon, narrow.of(narrow.dx), narrow.stream);
    l2_norm_backward(wide.of(wide.dy), wide.of(wide.x), kEpsilon, wide.of(wide.dx), wide.stream);
    expect_close(narrow.dx, wide.dx, 4 * rounding<T>() + 64 * rounding<float>(), 4);
  };
  check.operator()<float>();
  check.operator()<bfloat16>();
}

TEST(Heads, BitsDoNotDependOnThreads) {
  for_each_storage_type([]<class T>() {
    expect_same_on_all_teams([] {
      Case<T> c(900, 4, 33);
      run_all(c);
      std::vector<Sum<T>> all = c.dskip;
      for (const T value : c.y) all.push_back(static_cast<Sum<T>>(value));
      for (const T value : c.dx) all.push_back(static_cast<Sum<T>>(value));
      return all;
    });
  });
}

TEST(Heads, AcceptNoTokensAndRefuseShapesByName) {
  Case<float> none(0, 2, 3);
  run_all(none);
  Case<float> c(4, 2, 3);
  expect_refused(
      [&] {
        scale_heads(c.of(c.x), view(c.factor, {2, 4}), c.of(c.y), c.stream);
      },
      {"scale_heads", "factor", "[2, 4]", "[4, 2]"});
  expect_refused([&] { l2_norm(c.of(c.x), kEpsilon, view(c.y, {4, 3, 2}), c.stream); }, {"l2_norm", "y has shape [4, 3, 2]"});
}

}  // namespace
}  // namespace periplus::kernels
