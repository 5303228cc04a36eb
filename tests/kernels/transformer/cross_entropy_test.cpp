#include "kernels/transformer.h"
#include "tests/kernels/values.h"

namespace periplus::kernels {
namespace {

using namespace periplus::test;

struct PlainLoss {
  double sum = 0;
  std::int64_t valid = 0;
};

PlainLoss plain_loss(const std::vector<double>& x, const std::vector<double>& weight, const std::vector<std::int32_t>& labels,
                     std::size_t channels) {
  PlainLoss loss;
  const std::size_t vocabulary = weight.size() / channels;
  for (std::size_t n = 0; n < labels.size(); ++n) {
    if (labels[n] == kIgnoreLabel) continue;
    std::vector<double> z(vocabulary);
    for (std::size_t v = 0; v < vocabulary; ++v) {
      for (std::size_t c = 0; c < channels; ++c) z[v] += x[n * channels + c] * weight[v * channels + c];
    }
    double sum = 0;
    for (const double value : z) sum += std::exp(value);
    loss.sum += std::log(sum) - z[static_cast<std::size_t>(labels[n])];
    ++loss.valid;
  }
  return loss;
}

template <class T>
struct Case {
  std::int64_t rows, channels, vocabulary;
  std::vector<T> x, weight, dx;
  std::vector<Sum<T>> dweight;
  std::vector<std::int32_t> labels;
  CrossEntropyOptions options;
  CrossEntropyResult result;
  Memory memory;
  Stream stream;

  Case(std::int64_t row_count, std::int64_t channel_count, std::int64_t words)
      : rows(row_count),
        channels(channel_count),
        vocabulary(words),
        x(random_values<T>(rows * channels, 1)),
        weight(random_values<T>(vocabulary * channels, 2, 0.5)),
        dx(random_values<T>(rows * channels, 3)),
        dweight(random_values<Sum<T>>(vocabulary * channels, 4)) {
    for (std::int64_t n = 0; n < rows; ++n) labels.push_back(n % 5 == 3 ? kIgnoreLabel : static_cast<std::int32_t>(n * 7 % vocabulary));
  }
  void run() {
    result = cross_entropy(view(x, {rows, channels}), view(weight, {vocabulary, channels}), labels, options, view(dx, {rows, channels}),
                           view(dweight, {vocabulary, channels}), memory, stream);
  }
  CrossEntropyResult loss_only() {
    return cross_entropy(view(x, {rows, channels}), view(weight, {vocabulary, channels}), labels, options, {}, {}, memory, stream);
  }
  PlainLoss expected() const { return plain_loss(widened(x), widened(weight), labels, static_cast<std::size_t>(channels)); }
};

TEST(CrossEntropy, LossMatchesPlainFormula) {
  for_each_storage_type([]<class T>() {
    for (const std::int64_t vocabulary : {1, 3, 16, 45}) {
      Case<T> c(23, 12, vocabulary);
      c.run();
      const PlainLoss expected = c.expected();
      // Logits and exponentials are f32 (f64) even for bf16 inputs.
      EXPECT_NEAR(c.result.loss_sum, expected.sum, 64 * rounding<Sum<T>>() * (expected.sum + 1));
      EXPECT_EQ(c.result.valid_labels, expected.valid);
      EXPECT_EQ(c.loss_only().loss_sum, c.result.loss_sum);
    }
  });
}

TEST(CrossEntropy, StaysFiniteForHugeLogits) {
  Case<float> c(8, 12, 20);
  for (float& value : c.x) value *= 1e4f;
  c.run();
  EXPECT_TRUE(std::isfinite(c.result.loss_sum));
  EXPECT_GT(c.result.loss_sum, 1e3);
}

TEST(CrossEntropy, GradientsMatchFiniteDifferences) {
  Case<double> c(7, 5, 9);
  c.options = {.gradient_scale = 0.25, .tile_rows = 3};
  const auto before = c.dweight;
  c.run();
  const auto objective = [&] { return 0.25 * c.expected().sum; };
  expect_close(c.dx, numeric_gradient(c.x, objective), 1e-8);
  auto expected = numeric_gradient(c.weight, objective);
  for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += before[i];
  expect_close(c.dweight, expected, 1e-8);
}

template <class T>
void check_narrow_gradients(double tolerance) {
  Case<T> narrow(70, 24, 50);
  narrow.options.tile_rows = 32;
  const auto dweight_before = widened(narrow.dweight);
  narrow.run();
  Case<double> wide(70, 24, 50);
  wide.x = widened(narrow.x);
  wide.weight = widened(narrow.weight);
  wide.dweight = dweight_before;
  wide.run();
  expect_close(narrow.dx, wide.dx, tolerance);
  expect_close(narrow.dweight, wide.dweight, tolerance);
}

TEST(CrossEntropy, NarrowTypesFollowF64) {
  check_narrow_gradients<float>(200 * rounding<float>());
  // dz is rounded to bf16 before both products: sums of up to 70 rounded terms, of which few are large.
  check_narrow_gradients<bfloat16>(6 * rounding<bfloat16>());
}

TEST(CrossEntropy, TileSizeChangesRoundingOnly) {
  for_each_storage_type([]<class T>() {
    Case<T> whole(50, 16, 30);
    whole.options.tile_rows = 1000;
    whole.run();
    for (const std::int64_t tile : {1, 7, 32}) {
      Case<T> tiled(50, 16, 30);
      tiled.options.tile_rows = tile;
      tiled.run();
      EXPECT_NEAR(tiled.result.loss_sum, whole.result.loss_sum, 64 * rounding<Sum<T>>() * whole.result.loss_sum);
      expect_close(tiled.dx, widened(whole.dx), 4 * rounding<T>() + 64 * rounding<Sum<T>>());
      expect_close(tiled.dweight, widened(whole.dweight), 4 * rounding<T>() + 200 * rounding<Sum<T>>());
    }
  });
}

TEST(CrossEntropy, IgnoredLabelsGiveNoLossAndNoGradient) {
  for_each_storage_type([]<class T>() {
    Case<T> c(20, 8, 12);
    std::fill(c.labels.begin(), c.labels.end(), kIgnoreLabel);
    const auto before = c.dweight;
    c.run();
    EXPECT_EQ(c.result.loss_sum, 0);
    EXPECT_EQ(c.result.valid_labels, 0);
    expect_close(c.dx, std::vector<double>(c.dx.size()), 0);
    expect_close(c.dweight, widened(before), 0);
  });
}

TEST(CrossEntropy, BitsDoNotDependOnThreads) {
  for_each_storage_type([]<class T>() {
    expect_same_on_all_teams([] {
      Case<T> c(600, 48, 130);
      c.run();
      auto all = widened(c.dweight);
      const auto dx = widened(c.dx);
      all.insert(all.end(), dx.begin(), dx.end());
      all.push_back(c.result.loss_sum);
      return all;
    });
  });
}

TEST(CrossEntropy, HoldsOneTileOfLogitsOnly) {
  Case<bfloat16> c(1000, 8, 64);
  c.options.tile_rows = 100;
  c.run();
  EXPECT_LE(c.memory.account().peak_bytes(), 100u * 64u * (4u + 2u) + 1024u);
  EXPECT_EQ(c.memory.account().current_bytes(), 0u);
}

TEST(CrossEntropy, AcceptsNoTokens) {
  Case<float> c(0, 8, 12);
  const auto before = c.dweight;
  c.run();
  EXPECT_EQ(c.result.valid_labels, 0);
  EXPECT_TRUE(same_bits(before, c.dweight));
}

TEST(CrossEntropy, RefusesBadArgumentsByName) {
  Case<float> c(6, 8, 12);
  c.labels[4] = 12;
  expect_refused([&] { c.run(); }, {"label 12", "position 4", "[0, 12)"});
  c.labels[4] = -2;
  expect_refused([&] { c.run(); }, {"label -2", "position 4"});
  c.labels.pop_back();
  expect_refused([&] { c.run(); }, {"5 labels", "6 rows"});
  c.labels = std::vector<std::int32_t>(6, 0);
  c.options.tile_rows = 0;
  expect_refused([&] { c.run(); }, {"tile_rows is 0"});
  c.options.tile_rows = 4;
  expect_refused(
      [&] {
        cross_entropy(view(c.x, {6, 8}), view(c.weight, {12, 8}), c.labels, c.options, view(c.dx, {6, 8}), {}, c.memory, c.stream);
      },
      {"dx", "dweight", "both"});
  expect_refused(
      [&] {
        cross_entropy(view(c.x, {6, 8}), view(c.weight, {8, 12}), c.labels, c.options, {}, {}, c.memory, c.stream);
      },
      {"weight", "[8, 12]"});
}

}  // namespace
}  // namespace periplus::kernels
