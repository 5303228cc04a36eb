#include "kernels/matmul.h"

#include <thread>

#include "tests/kernels/values.h"

namespace periplus::kernels {
namespace {

using namespace periplus::test;

struct Shape {
  std::int64_t m, n, k;
};

/// A stored matrix with `gap` unused elements after each row.
template <class T>
struct Stored {
  std::int64_t rows, columns, stride;
  std::vector<T> values;

  Stored(std::int64_t row_count, std::int64_t column_count, std::int64_t gap, std::uint64_t seed)
      : rows(row_count),
        columns(column_count),
        stride(column_count + gap),
        values(random_values<T>(row_count * (column_count + gap), seed)) {}
  TensorView tensor() { return {reinterpret_cast<std::byte*>(values.data()), dtype_of<T>, {rows, columns}, {stride, 1}}; }
  double at(std::int64_t row, std::int64_t column) const {
    return static_cast<double>(values[static_cast<std::size_t>(row * stride + column)]);
  }
};

template <class In, class Out>
void check_product(const Shape& shape, const MatmulOptions& options, std::int64_t gap) {
  SCOPED_TRACE(testing::Message() << "m " << shape.m << " n " << shape.n << " k " << shape.k << " transposed " << options.transpose_a
                                  << options.transpose_b << " accumulate " << (options.update == Update::accumulate) << " gap " << gap);
  const auto stored = [&](bool transposed, std::int64_t rows, std::int64_t columns, std::uint64_t seed) {
    return transposed ? Stored<In>(columns, rows, gap, seed) : Stored<In>(rows, columns, gap, seed);
  };
  Stored<In> a = stored(options.transpose_a, shape.m, shape.k, 1), b = stored(options.transpose_b, shape.k, shape.n, 2);
  Stored<Out> c(shape.m, shape.n, gap, 3);
  const Stored<Out> before = c;
  const Stream stream;
  matmul(a.tensor(), b.tensor(), c.tensor(), options, stream);
  // Inputs are exact, at most k + 1 additions run in Sum<Out> in any order, then one rounding to Out.
  const double per_term = rounding<Sum<Out>>() * static_cast<double>(shape.k + 2);
  for (std::int64_t i = 0; i < shape.m; ++i) {
    for (std::int64_t j = 0; j < c.stride; ++j) {
      if (j >= shape.n) {
        ASSERT_EQ(c.at(i, j), before.at(i, j)) << "gap of row " << i << " was written";
        continue;
      }
      double expected = options.update == Update::accumulate ? before.at(i, j) : 0, size = std::abs(expected);
      for (std::int64_t t = 0; t < shape.k; ++t) {
        const double term = (options.transpose_a ? a.at(t, i) : a.at(i, t)) * (options.transpose_b ? b.at(j, t) : b.at(t, j));
        expected += term;
        size += std::abs(term);
      }
      ASSERT_NEAR(c.at(i, j), expected, per_term * size + rounding<Out>() * std::abs(expected)) << "at " << i << ", " << j;
    }
  }
}

template <class In, class Out>
void check_all_forms(const std::vector<Shape>& shapes) {
  for (const Shape& shape : shapes) {
    for (const int form : {0, 1, 2, 3}) {
      for (const std::int64_t gap : {0, 5}) {
        check_product<In, Out>(shape, {(form & 1) != 0, (form & 2) != 0, Update::overwrite}, gap);
        if (std::is_same_v<Out, bfloat16>) continue;
        check_product<In, Out>(shape, {(form & 1) != 0, (form & 2) != 0, Update::accumulate}, gap);
      }
    }
  }
}

// 1030 terms need three passes of a transposed a, the last padded; 150 and 600 rows need several blocks, the last of them short.
const std::vector<Shape> kShapes = {{1, 1, 1}, {1, 33, 7}, {5, 3, 64}, {37, 65, 70}, {150, 40, 33}, {70, 9, 1030}, {600, 24, 20}};

TEST(Matmul, Bf16ToF32MatchesPlainSumInAllForms) { check_all_forms<bfloat16, float>(kShapes); }
TEST(Matmul, Bf16ToBf16MatchesPlainSumInAllForms) { check_all_forms<bfloat16, bfloat16>(kShapes); }
TEST(Matmul, F32MatchesPlainSumInAllForms) { check_all_forms<float, float>(kShapes); }
TEST(Matmul, F64MatchesPlainSumInAllForms) { check_all_forms<double, double>(kShapes); }

template <class T>
void check_empty() {
  check_product<T, T>({0, 4, 3}, {}, 0);
  check_product<T, T>({4, 0, 3}, {}, 0);
  check_product<T, T>({4, 3, 0}, {}, 2);  // writes zeros
  if (!std::is_same_v<T, bfloat16>) check_product<T, T>({4, 3, 0}, {.update = Update::accumulate}, 2);
}

TEST(Matmul, EmptyDimensionsWriteNothingAndEmptySumsWriteZeros) {
  for_each_storage_type([]<class T>() { check_empty<T>(); });
}

template <class In, class Out>
std::vector<Out> product_of(const Shape& shape, const MatmulOptions& options) {
  const auto a = random_values<In>(shape.m * shape.k, 5), b = random_values<In>(shape.k * shape.n, 6);
  auto c = random_values<Out>(shape.m * shape.n, 7);
  const auto extents = [](bool transposed, std::int64_t rows, std::int64_t columns) {
    return transposed ? Extents{columns, rows} : Extents{rows, columns};
  };
  const Stream stream;
  matmul(view(a, extents(options.transpose_a, shape.m, shape.k)), view(b, extents(options.transpose_b, shape.k, shape.n)),
         view(c, {shape.m, shape.n}), options, stream);
  return c;
}

TEST(Matmul, BitsDoNotDependOnThreadsOrRepetition) {
  for (const int form : {0, 1, 2}) {
    MatmulOptions options{form == 1, form == 2, Update::overwrite};
    const Shape shape = form == 1 ? Shape{200, 136, 3000} : Shape{700, 120, 200};
    expect_same_on_all_teams([&] { return product_of<bfloat16, float>(shape, options); });
    expect_same_on_all_teams([&] { return product_of<bfloat16, bfloat16>(shape, options); });
    expect_same_on_all_teams([&] { return product_of<float, float>(shape, options); });
    expect_same_on_all_teams([&] { return product_of<double, double>({130, 60, 300}, options); });
    EXPECT_TRUE(same_bits(product_of<float, float>(shape, options), product_of<float, float>(shape, options)));
  }
}

TEST(Matmul, CallsProgressHookOnCallingThreadBetweenRowBlocks) {
  int calls = 0;
  const auto caller = std::this_thread::get_id();
  bool elsewhere = false;
  const Stream stream([&] {
    ++calls;
    elsewhere |= std::this_thread::get_id() != caller;
  });
  const auto a = random_values<float>(2048 * 64, 1), b = random_values<float>(64 * 64, 2);
  std::vector<float> c(2048 * 64);
  const int team = omp_get_max_threads();
  omp_set_num_threads(1);
  matmul(view(a, {2048, 64}), view(b, {64, 64}), view(c, {2048, 64}), {}, stream);
  omp_set_num_threads(team);
  EXPECT_GE(calls, 8);
  EXPECT_FALSE(elsewhere);
}

TEST(Matmul, RefusesShapesTypesAndStridesByName) {
  const Stream stream;
  std::vector<float> a(12), b(12), c(16);
  std::vector<bfloat16> half(16);
  expect_refused([&] { matmul(view(a, {4, 3}), view(b, {4, 3}), view(c, {4, 3}), {}, stream); }, {"a [4, 3]", "b [4, 3]", "c [4, 3]"});
  expect_refused([&] { matmul(view(a, {12}), view(b, {3, 4}), view(c, {4, 4}), {}, stream); }, {"a", "[12]", "2 dimensions"});
  expect_refused(
      [&] {
        matmul(view(half, {4, 4}), view(half, {4, 4}), view(half, {4, 4}), {.update = Update::accumulate}, stream);
      },
      {"bf16", "f32"});
  expect_refused([&] { matmul(view(a, {4, 3}), view(b, {3, 4}), view(half, {4, 4}), {}, stream); }, {"f32 x f32 -> bf16"});
  const ConstTensorView transposed(reinterpret_cast<const std::byte*>(a.data()), DType::f32, {4, 3}, {1, 4});
  expect_refused([&] { matmul(transposed, view(b, {3, 4}), view(c, {4, 4}), {}, stream); }, {"a [4, 3]", "[1, 4]", "contiguous"});
}

TEST(Matmul, PeakIsPositiveAndOnlyForKnownTypes) {
  EXPECT_GT(measure_matmul_peak(DType::f32), 1e8);
  EXPECT_THROW(measure_matmul_peak(DType::i32), InvalidArgument);
}

}  // namespace
}  // namespace periplus::kernels
