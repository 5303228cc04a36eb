#include "kernels/transformer.h"
#include "kernels/transformer/vector_math.h"
#include "tests/kernels/values.h"

namespace periplus::kernels {
namespace {

using namespace periplus::test;

constexpr double kTheta = 10000;
constexpr RopeStyle kStyles[] = {RopeStyle::half, RopeStyle::interleaved};

/// Rotates one head [D] in f64.
std::vector<double> plain_rotation(const std::vector<double>& x, double position, RopeStyle style) {
  const std::size_t width = x.size(), pairs = width / 2;
  std::vector<double> y(width);
  for (std::size_t m = 0; m < pairs; ++m) {
    const std::size_t a = style == RopeStyle::half ? m : 2 * m, b = style == RopeStyle::half ? m + pairs : 2 * m + 1;
    const double angle = position * std::pow(kTheta, -2.0 * static_cast<double>(m) / static_cast<double>(width));
    y[a] = x[a] * std::cos(angle) - x[b] * std::sin(angle);
    y[b] = x[b] * std::cos(angle) + x[a] * std::sin(angle);
  }
  return y;
}

template <class T>
std::vector<T> rotated(std::vector<T> x, const std::vector<std::int64_t>& positions, std::int64_t heads, RopeStyle style,
                       RopeDirection direction) {
  const auto rows = static_cast<std::int64_t>(positions.size());
  const std::int64_t width = rows == 0 ? 8 : static_cast<std::int64_t>(x.size()) / (rows * heads);
  const Stream stream;
  rope(view(x, {rows, heads, width}), positions, rope_frequencies(kTheta, width), style, direction, stream);
  return x;
}

TEST(Rope, MatchesPlainRotationAtShortAndLongPositions) {
  // The last two lie beyond kFastSincosLimit, where libm takes over.
  const std::vector<std::int64_t> positions = {0, 1, 5, 4095, 131071, 1'599'999, 1'600'001, 100'000'000};
  for_each_storage_type([&]<class T>() {
    for (const RopeStyle style : kStyles) {
      for (const std::int64_t width : {2, 10, 64}) {
        const std::int64_t heads = 3;
        const auto x = random_values<T>(static_cast<std::int64_t>(positions.size()) * heads * width, 1);
        const auto y = rotated(x, positions, heads, style, RopeDirection::forward);
        const auto wide = widened(x);
        std::vector<double> expected;
        for (std::size_t at = 0; at < wide.size(); at += static_cast<std::size_t>(width)) {
          const std::int64_t position = positions[at / static_cast<std::size_t>(heads * width)];
          const auto head =
              plain_rotation({wide.begin() + static_cast<std::ptrdiff_t>(at), wide.begin() + static_cast<std::ptrdiff_t>(at) + width},
                             static_cast<double>(position), style);
          expected.insert(expected.end(), head.begin(), head.end());
        }
        // In f64 a frequency's own rounding moves an angle of 10^8 by about 1e-8.
        expect_close(y, expected, rounding<T>() + 8 * rounding<Sum<T>>() + 3e-8 * std::is_same_v<T, double>);
      }
    }
  });
}

TEST(Rope, F64IsAccurateWhereAnglesAreExact) {
  const std::vector<std::int64_t> positions = {3, 77, 65536, 1'000'003};
  for (const RopeStyle style : kStyles) {
    const auto x = random_values<double>(4 * 2, 9);  // one pair: the frequency is exactly 1
    const auto y = rotated(x, positions, 1, style, RopeDirection::forward);
    for (std::size_t row = 0; row < 4; ++row) {
      const auto expected = plain_rotation({x[2 * row], x[2 * row + 1]}, static_cast<double>(positions[row]), style);
      expect_close(std::vector<double>{y[2 * row], y[2 * row + 1]}, expected, 4e-15);
    }
  }
}

TEST(Rope, FrequenciesAboveOneReachLongAnglesSooner) {
  const std::vector<double> frequencies = {0x1p40, -0x1p12};
  for (const std::int64_t position : {1, 300, 65537, 1'500'000}) {
    const auto x = random_values<double>(4, 10);
    auto y = x;
    const std::vector<std::int64_t> positions = {position};
    rope(view(y, {1, 1, 4}), positions, frequencies, RopeStyle::interleaved, RopeDirection::forward, Stream());
    for (std::size_t m = 0; m < 2; ++m) {
      const double angle = static_cast<double>(position) * frequencies[m], a = x[2 * m], b = x[2 * m + 1];
      EXPECT_NEAR(y[2 * m], a * std::cos(angle) - b * std::sin(angle), 4e-15) << position;
      EXPECT_NEAR(y[2 * m + 1], b * std::cos(angle) + a * std::sin(angle), 4e-15) << position;
    }
  }
}

TEST(Rope, BackwardUndoesForward) {
  const std::vector<std::int64_t> positions = {7, 100, 3, 99999, 12};
  for_each_storage_type([&]<class T>() {
    for (const RopeStyle style : kStyles) {
      const auto x = random_values<T>(5 * 2 * 16, 2);
      const auto there = rotated(x, positions, 2, style, RopeDirection::forward);
      const auto back = rotated(there, positions, 2, style, RopeDirection::backward);
      EXPECT_FALSE(same_bits(there, x));
      expect_close(back, widened(x), 4 * rounding<T>() + 8 * rounding<Sum<T>>());
    }
  });
}

TEST(Rope, ScoresDependOnDistanceOnly) {
  for (const RopeStyle style : kStyles) {
    const auto q = random_values<double>(32, 3), k = random_values<double>(32, 4);
    const auto score = [&](std::int64_t query, std::int64_t key) {
      return dot(rotated(q, {query}, 1, style, RopeDirection::forward), rotated(k, {key}, 1, style, RopeDirection::forward));
    };
    EXPECT_NEAR(score(10, 3), score(1007, 1000), 1e-10);
    EXPECT_GT(std::abs(score(10, 3) - score(10, 4)), 1e-3);
  }
}

TEST(Rope, KeepsGapsOfStridedViews) {
  const std::int64_t rows = 4, heads = 2, width = 6, head_stride = 9, row_stride = 25;
  auto values = random_values<float>(rows * row_stride, 5);
  const auto before = values;
  const Stream stream;
  const std::vector<std::int64_t> positions = {4, 5, 6, 7};
  const TensorView x(reinterpret_cast<std::byte*>(values.data()), DType::f32, {rows, heads, width}, {row_stride, head_stride, 1});
  rope(x, positions, rope_frequencies(kTheta, width), RopeStyle::half, RopeDirection::forward, stream);
  for (std::int64_t i = 0; i < rows * row_stride; ++i) {
    const std::int64_t row = i / row_stride, head = i % row_stride / head_stride, at = i % row_stride % head_stride;
    const auto index = static_cast<std::size_t>(i);
    if (head >= heads || at >= width) {
      ASSERT_EQ(values[index], before[index]) << "gap at " << i;
      continue;
    }
    const auto first = before.begin() + row * row_stride + head * head_stride;
    const auto expected =
        plain_rotation({first, first + width}, static_cast<double>(positions[static_cast<std::size_t>(row)]), RopeStyle::half);
    ASSERT_NEAR(values[index], expected[static_cast<std::size_t>(at)], 1e-6);
  }
}

TEST(Rope, BitsDoNotDependOnThreads) {
  std::vector<std::int64_t> positions;
  for (std::int64_t n = 0; n < 700; ++n) positions.push_back(5 * n);
  for_each_storage_type([&]<class T>() {
    expect_same_on_all_teams(
        [&] { return rotated(random_values<T>(700 * 4 * 32, 6), positions, 4, RopeStyle::half, RopeDirection::forward); });
  });
}

TEST(Rope, AcceptsNoTokensAndRefusesOddWidthsAndMissingPositions) {
  EXPECT_TRUE(rotated(std::vector<float>(), {}, 2, RopeStyle::half, RopeDirection::forward).empty());
  std::vector<float> x(30);
  const Stream stream;
  const std::vector<std::int64_t> two = {0, 1}, three = {0, 1, 2};
  const auto call = [&](const Extents& shape, const std::vector<std::int64_t>& positions) {
    rope(view(x, shape), positions, rope_frequencies(kTheta, 2), RopeStyle::half, RopeDirection::forward, stream);
  };
  expect_refused([&] { call({2, 3, 5}, two); }, {"rope", "5", "even"});
  expect_refused([&] { call({3, 5, 2}, two); }, {"2 positions for 3 rows"});
  expect_refused([&] { call({3, 1, 10}, three); }, {"1 frequencies for the 5 pairs"});
  expect_refused([&] { rope_frequencies(-1, 8); }, {"theta is -1"});
  expect_refused([&] { rope_frequencies(kTheta, 5); }, {"width 5 is odd"});
}

TEST(VectorMath, SincosMatchesLibmUpToItsLimit) {
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> exponent(-8, std::log10(kFastSincosLimit));
  for (int i = 0; i < 200000; ++i) {
    const double x = std::pow(10.0, exponent(random)) * (i % 2 == 0 ? 1 : -1);
    double sine = 0, cosine = 0;
    fast_sincos(x, sine, cosine);
    ASSERT_NEAR(sine, std::sin(x), 1e-15) << x;
    ASSERT_NEAR(cosine, std::cos(x), 1e-15) << x;
  }
}

TEST(VectorMath, ExpMatchesLibmAndItsLimits) {
  double worst = 0;
  for (double x = -87.3; x < 88.3; x += 0.000317) {
    const auto argument = static_cast<float>(x);
    const double exact = std::exp(static_cast<double>(argument));
    worst = std::max(worst, std::abs(static_cast<double>(fast_exp(argument)) - exact) / exact);
  }
  EXPECT_LT(worst, 1.5e-7);
  EXPECT_EQ(fast_exp(0.0f), 1.0f);
  EXPECT_EQ(fast_exp(-88.0f), 0.0f);
  EXPECT_EQ(fast_exp(-std::numeric_limits<float>::infinity()), 0.0f);
  EXPECT_TRUE(std::isfinite(fast_exp(1e30f)));
  EXPECT_TRUE(std::isnan(fast_exp(std::numeric_limits<float>::quiet_NaN())));
}

TEST(VectorMath, StoreRoundsLikeBfloat16) {
  for (std::uint64_t word = 0; word < (1ull << 32); word += 65521 / 3) {
    const float value = std::bit_cast<float>(static_cast<std::uint32_t>(word));
    bfloat16 stored;
    store(stored, value);
    ASSERT_EQ(stored.bits, bfloat16(value).bits) << value;
  }
}

}  // namespace
}  // namespace periplus::kernels
