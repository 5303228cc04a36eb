#include "parallel/short_convolution.h"

#include <algorithm>
#include <random>

#include <gtest/gtest.h>

#include "runtime/comm/thread_transport.h"
#include "runtime/error.h"

namespace periplus {
namespace {

constexpr std::int64_t kChannels = 5;

std::vector<double> random_values(std::int64_t count, std::uint64_t seed) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<double> normal;
  std::vector<double> values(static_cast<std::size_t>(count));
  for (double& value : values) value = normal(engine);
  return values;
}

TensorView view(std::vector<double>& values, const Extents& shape) {
  return {reinterpret_cast<std::byte*>(values.data()), DType::f64, shape};
}

/// In the order of the packed sequence.
struct Results {
  std::vector<double> y, dx, dweight;
};

struct Case {
  std::vector<std::int64_t> cu_seqlens;
  LayoutKind kind;
  int ranks;
  std::int64_t width;
};

std::vector<double> rows_of(const std::vector<double>& global, const std::vector<std::int64_t>& rows) {
  std::vector<double> local;
  for (const std::int64_t row : rows) {
    local.insert(local.end(), global.begin() + row * kChannels, global.begin() + (row + 1) * kChannels);
  }
  return local;
}

Results run(const Case& c) {
  const std::int64_t tokens = c.cu_seqlens.back();
  const auto x = random_values(tokens * kChannels, 1), dy = random_values(tokens * kChannels, 2);
  auto weight = random_values(kChannels * c.width, 3);
  Results results{std::vector<double>(x.size()), std::vector<double>(x.size()), std::vector<double>(weight.size())};
  comm::run_thread_ranks(c.ranks, [&](comm::Communicator communicator) {
    const Stream stream([communicator] { communicator.progress(); });
    const Memory memory;
    const SequenceLayout layout = SequenceLayout::make(c.kind, c.ranks, c.cu_seqlens);
    const auto global_rows = layout.global_rows(communicator.rank());
    const std::int64_t rows = std::ssize(global_rows);
    DistributedConvolution convolution({layout, kChannels, c.width, DType::f64}, communicator, memory);
    auto my_x = rows_of(x, global_rows), my_dy = rows_of(dy, global_rows);
    std::vector<double> y(my_x.size()), again(my_x.size()), dx(my_x.size()), dweight(weight.size());
    const Tensor halo({convolution.units(), c.width - 1, kChannels}, DType::f64, memory);
    const TensorView weights = view(weight, {kChannels, c.width});
    const Extents shape = {rows, kChannels};
    convolution.forward(view(my_x, shape), weights, halo, view(y, shape), stream);
    convolution.forward_again(view(my_x, shape), weights, halo, view(again, shape), stream);
    EXPECT_EQ(y, again);
    convolution.backward(view(my_x, shape), weights, halo, view(my_dy, shape), view(dx, shape), view(dweight, weights.shape()), stream);
    communicator.all_reduce(view(dweight, {std::ssize(dweight)}), comm::Reduce::sum, stream);
    for (std::int64_t i = 0; i < rows; ++i) {
      const std::int64_t to = global_rows[static_cast<std::size_t>(i)] * kChannels;
      std::copy_n(y.begin() + i * kChannels, kChannels, results.y.begin() + to);
      std::copy_n(dx.begin() + i * kChannels, kChannels, results.dx.begin() + to);
    }
    if (communicator.rank() == 0) results.dweight = dweight;
  });
  return results;
}

void expect_near(const std::vector<double>& a, const std::vector<double>& b, const char* what) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], 1e-12 * std::max(1.0, std::abs(b[i]))) << what << " " << i;
}

TEST(DistributedConvolution, EqualsOneRankForEveryLayoutAndDocument) {
  const std::vector<std::vector<std::int64_t>> rows = {
      {0, 61}, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, {0, 1, 10, 11, 13, 30, 30, 47}, {0, 2}, {0, 7}, {0, 6, 13, 64}};
  for (const auto& cu_seqlens : rows) {
    for (const std::int64_t width : {1, 2, 4, 9}) {
      const Results single = run({cu_seqlens, LayoutKind::contiguous, 1, width});
      for (const LayoutKind kind : {LayoutKind::contiguous, LayoutKind::zigzag, LayoutKind::document_zigzag, LayoutKind::striped}) {
        for (const int ranks : {1, 2, 3, 4, 5}) {
          SCOPED_TRACE(testing::Message() << to_string(kind) << " ranks " << ranks << " width " << width << " tokens "
                                          << cu_seqlens.back());
          const Results distributed = run({cu_seqlens, kind, ranks, width});
          expect_near(distributed.y, single.y, "y");
          expect_near(distributed.dx, single.dx, "dx");
          expect_near(distributed.dweight, single.dweight, "dweight");
        }
      }
    }
  }
}

TEST(DistributedConvolution, DocumentsDoNotSeeEachOther) {
  const Results together = run({{0, 5, 6, 20}, LayoutKind::zigzag, 3, 4});
  // The second and third document alone, from the same random rows.
  const auto x = random_values(20 * kChannels, 1);
  std::vector<double> last(x.begin() + 6 * kChannels, x.end());
  auto weight = random_values(kChannels * 4, 3);
  std::vector<double> y(last.size());
  const Tensor halo = Tensor::zeros({1, 3, kChannels}, DType::f64, Memory());
  DistributedConvolution alone(
      {SequenceLayout::make(LayoutKind::contiguous, 1, std::vector<std::int64_t>{0, 14}), kChannels, 4, DType::f64}, {}, Memory());
  const Stream stream;
  alone.forward(view(last, {14, kChannels}), view(weight, {kChannels, 4}), halo, view(y, {14, kChannels}), stream);
  expect_near(std::vector<double>(together.y.begin() + 6 * kChannels, together.y.end()), y, "y");
}

TEST(DistributedConvolution, SendsHalosOnly) {
  std::size_t most = 0;
  comm::run_thread_ranks(4, [&](comm::Communicator communicator) {
    const Stream stream([communicator] { communicator.progress(); });
    const Memory memory;
    DistributedConvolution convolution(
        {SequenceLayout::make(LayoutKind::contiguous, 4, std::vector<std::int64_t>{0, 400}), kChannels, 4, DType::f64}, communicator,
        memory);
    auto x = random_values(100 * kChannels, 1), weight = random_values(kChannels * 4, 3);
    std::vector<double> y(x.size());
    const Tensor halo({1, 3, kChannels}, DType::f64, memory);
    const std::size_t before = communicator.traffic().bytes_sent;
    convolution.forward(view(x, {100, kChannels}), view(weight, {kChannels, 4}), halo, view(y, {100, kChannels}), stream);
    if (communicator.rank() == 1) most = communicator.traffic().bytes_sent - before;
  });
  EXPECT_EQ(most, 3u * kChannels * 8u);
}

TEST(DistributedConvolution, RefusesALayoutOfOtherRanks) {
  const SequenceLayout layout = SequenceLayout::make(LayoutKind::contiguous, 3, std::vector<std::int64_t>{0, 12});
  EXPECT_THROW(DistributedConvolution({layout, 2, 4, DType::f32}, comm::Communicator(), Memory()), InvalidArgument);
  const SequenceLayout own = SequenceLayout::make(LayoutKind::contiguous, 1, std::vector<std::int64_t>{0, 12});
  EXPECT_THROW(DistributedConvolution({own, 2, 0, DType::f32}, comm::Communicator(), Memory()), InvalidArgument);
}

}  // namespace
}  // namespace periplus
