// The token-parallel parts on a device against those of the CPU, twice for equal bits.
#include "kernels/transformer.h"

#include <functional>
#include <limits>

#include "kernels/cuda/matmul.h"
#include "tests/kernels/cuda/there.h"
#include "tests/parallel/execute/cuda_test.h"

namespace periplus::kernels {
namespace {

using namespace periplus::test;

class TransformerOnCuda : public test::OnCuda {};

TEST_F(TransformerOnCuda, RmsNorm) {
  const Stream stream = periplus::cuda::make_stream(0);
  for_each_case([&]<class T>(const Size& s) {
    const auto x = random_values<T>(s.rows * s.columns, 1), gamma = random_values<T>(s.columns, 2);
    const auto run = [&](const Stream& on, auto&& x_view, auto&& gamma_view, auto&& y_view, auto&& rstd_view) {
      rms_norm(x_view, gamma_view, 1e-5, y_view, rstd_view, on);
    };
    auto y = x;
    std::vector<Sum<T>> rstd(static_cast<std::size_t>(s.rows));
    std::vector<T> results[2];
    std::vector<Sum<T>> scales[2];
    for (int i = 0; i < 2; ++i) {
      const There<T> x_there(x, stream, s.skip), gamma_there(gamma, stream, s.skip), y_there(y, stream, s.skip);
      const There<Sum<T>> rstd_there(rstd, stream);
      run(stream, x_there.view({s.rows, s.columns}), gamma_there.view({s.columns}), y_there.view({s.rows, s.columns}),
          rstd_there.view({s.rows}));
      results[i] = y_there.back(), scales[i] = rstd_there.back();
    }
    run(Stream(), view(x, {s.rows, s.columns}), view(gamma, {s.columns}), view(y, {s.rows, s.columns}), view(rstd, {s.rows}));
    expect_agreement(results[0], results[1], y, kTolerance<T>);
    expect_agreement(scales[0], scales[1], rstd, 256 * rounding<Sum<T>>());
  });
}

template <class T>
struct NormGradients {
  std::vector<T> dx;
  std::vector<Sum<T>> dgamma;
};

template <class T>
void check_rms_norm_backward(const Size& s, Update update, const Stream& stream) {
  const std::int64_t elements = s.rows * s.columns;
  const auto x = random_values<T>(elements, 1), dy = random_values<T>(elements, 2), gamma = random_values<T>(s.columns, 3);
  auto rstd = random_values<Sum<T>>(s.rows, 4);
  for (auto& value : rstd) value = 1 + std::abs(value) / 4;
  const Extents shape{s.rows, s.columns};
  NormGradients<T> cpu{random_values<T>(elements, 5), random_values<Sum<T>>(s.columns, 6)}, runs[2];
  for (NormGradients<T>& result : runs) {
    const There<T> x_there(x, stream, s.skip), dy_there(dy, stream, s.skip), gamma_there(gamma, stream, s.skip), dx(cpu.dx, stream, s.skip);
    const There<Sum<T>> rstd_there(rstd, stream), dgamma(cpu.dgamma, stream, s.skip);
    rms_norm_backward(dy_there.view(shape), x_there.view(shape), gamma_there.view({s.columns}), rstd_there.view({s.rows}), dx.view(shape),
                      update, dgamma.view({s.columns}), stream);
    result = {dx.back(), dgamma.back()};
  }
  rms_norm_backward(view(dy, shape), view(x, shape), view(gamma, {s.columns}), view(rstd, {s.rows}), view(cpu.dx, shape), update,
                    view(cpu.dgamma, {s.columns}), Stream());
  expect_agreement(runs[0].dx, runs[1].dx, cpu.dx, kTolerance<T>, 4);
  expect_agreement(runs[0].dgamma, runs[1].dgamma, cpu.dgamma, 256 * rounding<Sum<T>>(), 8);
  if (update == Update::accumulate) return;
  const There<T> x_there(x, stream, s.skip), gamma_there(gamma, stream, s.skip), dy_and_dx(dy, stream, s.skip);
  const There<Sum<T>> rstd_there(rstd, stream), dgamma(cpu.dgamma, stream, s.skip);
  rms_norm_backward(dy_and_dx.view(shape), x_there.view(shape), gamma_there.view({s.columns}), rstd_there.view({s.rows}),
                    dy_and_dx.view(shape), update, dgamma.view({s.columns}), stream);
  EXPECT_EQ(widened(dy_and_dx.back()), widened(runs[0].dx));
}

TEST_F(TransformerOnCuda, RmsNormBackward) {
  const Stream stream = periplus::cuda::make_stream(0);
  for_each_case([&]<class T>(const Size& s) {
    check_rms_norm_backward<T>(s, Update::overwrite, stream);
    check_rms_norm_backward<T>(s, Update::accumulate, stream);
  });
}

struct Heads {
  std::int64_t rows, heads, width, gap, pad, skip;
};

template <class T>
void check_rope(const Heads& h, RopeStyle style, RopeDirection direction, const Stream& stream) {
  const std::int64_t head = h.width + h.pad, row = (h.heads + h.gap) * head;
  auto x = random_values<T>(h.rows * row, 1);
  constexpr std::int64_t kFar[] = {0, 1, 4095, 131071, 1'599'999, 1'600'001, 100'000'000};
  std::vector<std::int64_t> positions;
  for (std::int64_t n = 0; n < h.rows; ++n) positions.push_back(kFar[n % 7] + n);
  const auto strided_view = [&](const TensorView& flat) {
    return TensorView(flat.bytes(), flat.dtype(), {h.rows, h.heads, h.width}, {row, head, 1});
  };
  const std::vector<double> frequencies = rope_frequencies(10000, h.width);
  std::vector<T> runs[2];
  for (std::vector<T>& result : runs) {
    const There<T> there(x, stream, h.skip);
    rope(strided_view(there.view({h.rows * row})), positions, frequencies, style, direction, stream);
    result = there.back();
  }
  rope(strided_view(view(x, {h.rows * row})), positions, frequencies, style, direction, Stream());
  expect_agreement(runs[0], runs[1], x, 2.02 * rounding<T>() + 16 * rounding<Sum<T>>());
}

TEST_F(TransformerOnCuda, Rope) {
  const Stream stream = periplus::cuda::make_stream(0);
  for_each_storage_type([&]<class T>() {
    for (const Heads& h : {Heads{0, 2, 8, 0, 0, 0}, Heads{1, 1, 2, 0, 0, 0}, Heads{9, 3, 10, 0, 0, 0}, Heads{15, 4, 128, 0, 0, 0},
                           Heads{15, 2, 64, 1, 16, 0}, Heads{15, 2, 64, 1, 3, 0}, Heads{8, 2, 32, 0, 0, 1}, Heads{3, 2, 1040, 0, 0, 0},
                           Heads{40, 33, 16, 0, 0, 0}, Heads{4, 1, 2066, 0, 0, 0}}) {
      SCOPED_TRACE(testing::Message() << h.rows << " x " << h.heads << " x " << h.width);
      for (const RopeStyle style : {RopeStyle::half, RopeStyle::interleaved}) {
        for (const RopeDirection direction : {RopeDirection::forward, RopeDirection::backward}) check_rope<T>(h, style, direction, stream);
      }
    }
  });
}

TEST_F(TransformerOnCuda, Swiglu) {
  const Stream stream = periplus::cuda::make_stream(0);
  for_each_case([&]<class T>(const Size& s) {
    const std::int64_t elements = s.rows * s.columns;
    const Extents shape{s.rows, s.columns};
    const auto gate = random_values<T>(elements, 1, 4), up = random_values<T>(elements, 2);
    auto h = random_values<T>(elements, 3);
    std::vector<T> runs[2];
    for (std::vector<T>& result : runs) {
      const There<T> gates(gate, stream, s.skip), ups(up, stream, s.skip), out(h, stream, s.skip);
      swiglu(gates.view(shape), ups.view(shape), out.view(shape), stream);
      result = out.back();
    }
    swiglu(view(gate, shape), view(up, shape), view(h, shape), Stream());
    expect_agreement(runs[0], runs[1], h, kTolerance<T>);
  });
}

TEST_F(TransformerOnCuda, SwigluBackwardInPlace) {
  const Stream stream = periplus::cuda::make_stream(0);
  for_each_case([&]<class T>(const Size& s) {
    const std::int64_t elements = s.rows * s.columns;
    const Extents shape{s.rows, s.columns};
    const auto dh = random_values<T>(elements, 1);
    auto gate = random_values<T>(elements, 2, 4), up = random_values<T>(elements, 3);
    std::vector<T> of_gate[2], of_up[2];
    for (int i = 0; i < 2; ++i) {
      const There<T> gradients(dh, stream, s.skip), gates(gate, stream, s.skip), ups(up, stream, s.skip);
      swiglu_backward(gradients.view(shape), gates.view(shape), ups.view(shape), gates.view(shape), ups.view(shape), stream);
      of_gate[i] = gates.back(), of_up[i] = ups.back();
    }
    swiglu_backward(view(dh, shape), view(gate, shape), view(up, shape), view(gate, shape), view(up, shape), Stream());
    expect_agreement(of_gate[0], of_gate[1], gate, kTolerance<T>);
    expect_agreement(of_up[0], of_up[1], up, kTolerance<T>);
  });
}

constexpr std::int64_t kVocabulary = 11;

/// Most are token 3, some rows of the table are not named.
std::vector<std::int32_t> some_tokens(std::int64_t count) {
  std::mt19937_64 random(7);
  std::vector<std::int32_t> tokens;
  for (std::int64_t n = 0; n < count; ++n)
    tokens.push_back(random() % 2 == 0 ? 3 : static_cast<std::int32_t>(random() % (kVocabulary - 2)));
  return tokens;
}

TEST_F(TransformerOnCuda, EmbeddingHasTheBitsOfTheCpu) {
  const Stream stream = periplus::cuda::make_stream(0);
  for_each_case([&]<class T>(const Size& s) {
    const auto tokens = some_tokens(s.rows);
    const auto table = random_values<T>(kVocabulary * s.columns, 1);
    auto x = random_values<T>(s.rows * s.columns, 2);
    const There<T> table_there(table, stream, s.skip), there(x, stream, s.skip);
    embedding(tokens, table_there.view({kVocabulary, s.columns}), there.view({s.rows, s.columns}), stream);
    embedding(tokens, view(table, {kVocabulary, s.columns}), view(x, {s.rows, s.columns}), Stream());
    EXPECT_TRUE(same_bits(there.back(), x));
  });
}

/// The host runs ahead of the stream, and its lists are copied only when the stream gets there.
TEST_F(TransformerOnCuda, ListsOfTheHostMayChangeAtOnce) {
  const Stream stream = periplus::cuda::make_stream(0);
  constexpr std::int64_t kRows = 40000, kColumns = 64;
  constexpr std::int32_t kCalls = 50;
  const auto table = random_values<float>(kVocabulary * kColumns, 1);
  const There<float> table_there(table, stream), sums(std::vector<float>(kVocabulary * kColumns), stream);
  const Tensor x({kRows, kColumns}, DType::f32, Memory(stream.device()));
  std::vector<std::int32_t> tokens(kRows);
  for (std::int32_t call = 0; call < kCalls; ++call) {
    std::ranges::fill(tokens, call % kVocabulary);
    embedding(tokens, table_there.view({kVocabulary, kColumns}), x, stream);
    // Row `call` of the sums gets what the call has found.
    embedding_backward(tokens, x, sums.view({kVocabulary, kColumns}), stream);
  }
  std::ranges::fill(tokens, 0);
  std::vector<float> expected(kVocabulary * kColumns);
  for (std::int32_t call = 0; call < kCalls; ++call) {
    std::ranges::fill(tokens, call % kVocabulary);
    std::vector<float> found(kRows * kColumns);
    embedding(tokens, view(table, {kVocabulary, kColumns}), view(found, {kRows, kColumns}), Stream());
    embedding_backward(tokens, view(found, {kRows, kColumns}), view(expected, {kVocabulary, kColumns}), Stream());
  }
  EXPECT_TRUE(same_bits(sums.back(), expected));
}

TEST_F(TransformerOnCuda, EmbeddingBackwardHasTheBitsOfTheCpu) {
  const Stream stream = periplus::cuda::make_stream(0);
  for_each_case([&]<class T>(const Size& s) {
    const auto tokens = some_tokens(s.rows);
    const auto dx = random_values<T>(s.rows * s.columns, 1);
    auto dtable = random_values<Sum<T>>(kVocabulary * s.columns, 2);
    const There<T> gradients(dx, stream, s.skip);
    const There<Sum<T>> there(dtable, stream, s.skip);
    embedding_backward(tokens, gradients.view({s.rows, s.columns}), there.view({kVocabulary, s.columns}), stream);
    embedding_backward(tokens, view(dx, {s.rows, s.columns}), view(dtable, {kVocabulary, s.columns}), Stream());
    EXPECT_TRUE(same_bits(there.back(), dtable));
  });
}

template <class T>
struct LossCase {
  std::int64_t rows, channels, vocabulary;
  std::vector<T> x = random_values<T>(rows * channels, 1), weight = random_values<T>(vocabulary * channels, 2, 0.5);
  std::vector<T> dx = random_values<T>(rows * channels, 3);
  std::vector<Sum<T>> dweight = random_values<Sum<T>>(vocabulary * channels, 4);
  std::vector<std::int32_t> labels = {};
  CrossEntropyOptions options = {.gradient_scale = 0.25, .tile_rows = 32};
  CrossEntropyResult result = {}, loss_only = {};

  LossCase(std::int64_t row_count, std::int64_t channel_count, std::int64_t words)
      : rows(row_count), channels(channel_count), vocabulary(words) {
    for (std::int64_t n = 0; n < rows; ++n) labels.push_back(n % 5 == 3 ? kIgnoreLabel : static_cast<std::int32_t>(n * 7 % vocabulary));
  }
  CrossEntropyResult call(const ConstTensorView& x_view, const ConstTensorView& weight_view, TensorView dx_view, TensorView dweight_view,
                          const Stream& stream) const {
    return cross_entropy(x_view, weight_view, labels, options, dx_view, dweight_view, Memory(stream.device()), stream);
  }
  void run_here() {
    result = call(view(x, {rows, channels}), view(weight, {vocabulary, channels}), view(dx, {rows, channels}),
                  view(dweight, {vocabulary, channels}), Stream());
  }
  void run_there(const Stream& stream) {
    const There<T> xs(x, stream), weights(weight, stream), dxs(dx, stream);
    const There<Sum<T>> dweights(dweight, stream);
    const TensorView x_view = xs.view({rows, channels}), weight_view = weights.view({vocabulary, channels});
    loss_only = call(x_view, weight_view, {}, {}, stream);
    result = call(x_view, weight_view, dxs.view({rows, channels}), dweights.view({vocabulary, channels}), stream);
    dx = dxs.back(), dweight = dweights.back();
  }
};

template <class T>
void check_loss(const LossCase<T>& from, const Stream& stream) {
  LossCase<T> cpu = from, first = from, second = from;
  cpu.run_here();
  first.run_there(stream);
  second.run_there(stream);
  EXPECT_NEAR(first.result.loss_sum, cpu.result.loss_sum, 64 * rounding<Sum<T>>() * (cpu.result.loss_sum + 1));
  EXPECT_EQ(first.result.loss_sum, second.result.loss_sum);
  EXPECT_EQ(first.loss_only.loss_sum, first.result.loss_sum);
  EXPECT_EQ(first.result.valid_labels, cpu.result.valid_labels);
  EXPECT_EQ(first.loss_only.valid_labels, cpu.result.valid_labels);
  // The score gradients are rounded to T before both products: sums of rounded terms, of which few are large.
  constexpr double kGradients = std::is_same_v<T, bfloat16> ? 6 * rounding<T>() : 200 * rounding<T>();
  expect_agreement(first.dx, second.dx, cpu.dx, kGradients);
  expect_agreement(first.dweight, second.dweight, cpu.dweight, kGradients);
}

TEST_F(TransformerOnCuda, CrossEntropy) {
  std::string why;
  if (!cuda::matmul_available(&why)) GTEST_SKIP() << why;
  const Stream stream = periplus::cuda::make_stream(0);
  for_each_storage_type([&]<class T>() {
    for (const auto& [rows, channels, vocabulary] :
         {std::array<std::int64_t, 3>{0, 8, 12}, {1, 1, 1}, {23, 12, 3}, {70, 24, 50}, {64, 32, 512}, {33, 16, 5003}}) {
      SCOPED_TRACE(testing::Message() << rows << " x " << channels << ", vocabulary " << vocabulary);
      check_loss(LossCase<T>(rows, channels, vocabulary), stream);
    }
  });
}

TEST_F(TransformerOnCuda, CrossEntropyOfHugeLogitsAndIgnoredLabels) {
  std::string why;
  if (!cuda::matmul_available(&why)) GTEST_SKIP() << why;
  const Stream stream = periplus::cuda::make_stream(0);
  LossCase<float> huge(8, 12, 20);
  for (float& value : huge.x) value *= 1e4f;
  huge.run_there(stream);
  EXPECT_TRUE(std::isfinite(huge.result.loss_sum));
  EXPECT_GT(huge.result.loss_sum, 1e3);
  LossCase<bfloat16> ignored(20, 8, 12);
  std::fill(ignored.labels.begin(), ignored.labels.end(), kIgnoreLabel);
  const auto before = ignored.dweight;
  ignored.run_there(stream);
  EXPECT_EQ(ignored.result.loss_sum, 0);
  expect_close(ignored.dx, std::vector<double>(ignored.dx.size()), 0);
  expect_close(ignored.dweight, widened(before), 0);
}

TEST_F(TransformerOnCuda, CrossEntropyRefusesMemoryOfAnotherDevice) {
  const Stream stream = periplus::cuda::make_stream(0);
  LossCase<float> c(4, 8, 12);
  expect_refused(
      [&] {
        cross_entropy(view(c.x, {4, 8}), view(c.weight, {12, 8}), c.labels, c.options, view(c.dx, {4, 8}), view(c.dweight, {12, 8}),
                      Memory(), stream);
      },
      {"cross_entropy", "memory is of cpu", "cuda:0"});
}

TEST_F(TransformerOnCuda, Adamw) {
  const Stream stream = periplus::cuda::make_stream(0);
  const AdamwOptions options{.learning_rate = 0.01, .weight_decay = 0.05, .step = 3, .gradient_scale = 0.7};
  for_each_case([&]<class T>(const Size& s) {
    using A = Sum<T>;
    const std::int64_t elements = s.rows * s.columns;
    const Extents shape{elements};
    auto master = random_values<A>(elements, 1), m = random_values<A>(elements, 2), v = random_values<A>(elements, 3);
    for (A& value : v) value = std::abs(value);
    const auto gradient = random_values<A>(elements, 4);
    std::vector<T> working(master.size()), workings[2];
    std::vector<A> masters[2], ms[2], vs[2];
    for (int i = 0; i < 2; ++i) {
      const There<A> weights(master, stream, s.skip), mean(m, stream, s.skip), square(v, stream, s.skip), g(gradient, stream, s.skip);
      const There<T> out(working, stream, s.skip);
      adamw(weights.view(shape), mean.view(shape), square.view(shape), g.view(shape), out.view(shape), options, stream);
      workings[i] = out.back(), masters[i] = weights.back(), ms[i] = mean.back(), vs[i] = square.back();
    }
    adamw(view(master, shape), view(m, shape), view(v, shape), view(gradient, shape), view(working, shape), options, Stream());
    expect_agreement(masters[0], masters[1], master, 16 * rounding<A>());
    expect_agreement(ms[0], ms[1], m, 16 * rounding<A>());
    expect_agreement(vs[0], vs[1], v, 16 * rounding<A>());
    expect_agreement(workings[0], workings[1], working, kTolerance<T>);
  });
}

TEST_F(TransformerOnCuda, SumOfSquaresDependsOnTheLengthAlone) {
  const Stream stream = periplus::cuda::make_stream(0);
  for_each_storage_type([&]<class T>() {
    for (const std::int64_t count : {0, 1, 15, 4096, 4097, 300'001, 9'000'001}) {
      const auto values = random_values<T>(count, 3);
      const double sum = sum_of_squares(There<T>(values, stream).view({count}), stream);
      EXPECT_EQ(sum, sum_of_squares(There<T>(values, stream).view({count}), stream));
      EXPECT_EQ(sum, sum_of_squares(There<T>(values, stream, 1).view({count}), stream)) << "another alignment";
      const double expected = sum_of_squares(view(values, {count}), Stream());
      EXPECT_NEAR(sum, expected, 1e-13 * (expected + 1)) << count;
    }
  });
}

TEST_F(TransformerOnCuda, AddInPlaceHasTheBitsOfTheCpu) {
  const Stream stream = periplus::cuda::make_stream(0);
  for_each_case([&]<class T>(const Size& s) {
    const Extents shape{s.rows, s.columns};
    const auto x = random_values<T>(s.rows * s.columns, 1);
    auto y = random_values<T>(s.rows * s.columns, 2);
    const There<T> from(x, stream, s.skip), to(y, stream, s.skip);
    add_in_place(from.view(shape), to.view(shape), stream);
    add_in_place(view(x, shape), view(y, shape), Stream());
    EXPECT_TRUE(same_bits(to.back(), y));
  });
}

}  // namespace
}  // namespace periplus::kernels
