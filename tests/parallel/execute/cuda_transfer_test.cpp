// Copies, sums and row moves on a device against those of the CPU, bit for bit, gaps included.
#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include <fmt/format.h>

#include "kernels/transfer.h"
#include "runtime/tensor.h"
#include "tests/parallel/execute/cuda_test.h"

namespace periplus::kernels {
namespace {

class TransferOnCuda : public test::OnCuda {};

constexpr DType kFloats[] = {DType::f64, DType::f32, DType::bf16, DType::f16};

/// Part of a buffer of `rows` x (`heads` + gap) x (`width` + pad), `skip` elements from its start.
struct Shape {
  std::int64_t rows, heads, width, gap, pad, skip;
};
constexpr Shape kShapes[] = {
    {1, 1, 1, 0, 0, 0},  {5, 3, 1, 0, 0, 0},     {7, 3, 5, 0, 0, 0},    {64, 8, 128, 0, 0, 0}, {33, 4, 64, 2, 0, 0}, {33, 4, 64, 0, 8, 0},
    {9, 5, 65, 1, 3, 1}, {200, 2, 96, 1, 0, 32}, {1000, 1, 7, 0, 1, 3}, {3, 700, 16, 1, 0, 8}, {257, 6, 4, 3, 4, 2}, {1, 5, 64, 1, 0, 0},
};

struct Operand {
  Tensor storage;
  TensorView view;

  Operand(const Shape& s, DType dtype, std::uint64_t seed)
      : storage({s.rows * (s.heads + s.gap) * (s.width + s.pad) + s.skip}, dtype, Memory()), view(view_of(storage, s)) {
    std::mt19937_64 random(seed);
    std::normal_distribution<double> normal(0, 20);  // no sum leaves f16: infinities would make NaN, whose bits differ
    const Tensor values(storage.shape(), DType::f64, Memory());
    for (double& x : values.view().span<double>()) x = normal(random) * std::exp2(static_cast<double>(random() % 18) - 10);
    periplus::copy(values, storage);
  }
  static TensorView view_of(const Tensor& tensor, const Shape& s) {
    const std::int64_t head = s.width + s.pad, row = (s.heads + s.gap) * head;
    std::byte* const data = tensor.view().bytes() + static_cast<std::size_t>(s.skip) * size_of(tensor.dtype());
    return TensorView(data, tensor.dtype(), {s.rows, s.heads, s.width}, {row, head, 1});
  }
};

bool same_bytes(const Tensor& a, const Tensor& b) {
  return std::equal(a.view().bytes(), a.view().bytes() + a.view().size_bytes(), b.view().bytes());
}

/// Runs `operation(source, destination, stream)` on both devices from equal contents and compares all of the destination.
template <class Operation>
void expect_equal(const Shape& from, const Shape& to, DType source_type, DType destination_type, const Operation& operation) {
  const Operand source(from, source_type, 1), destination(to, destination_type, 2);
  const Stream stream = cuda::make_stream(0);
  const Memory memory(stream.device());
  const Tensor source_there = to_device(source.storage, memory, stream), there = to_device(destination.storage, memory, stream);
  operation(ConstTensorView(Operand::view_of(source_there, from)), Operand::view_of(there, to), stream);
  operation(ConstTensorView(source.view), destination.view, Stream());
  EXPECT_TRUE(same_bytes(to_host(there, stream), destination.storage))
      << fmt::format("{} to {}, [{}, {}, {}] gaps {} {} skip {}", to_string(source_type), to_string(destination_type), from.rows,
                     from.heads, from.width, from.gap, to.gap, from.skip);
}

/// The same rows in another buffer: gaps of `b`.
Shape as(const Shape& a, const Shape& b) { return {a.rows, a.heads, a.width, b.gap, b.pad, b.skip}; }

constexpr auto copy_views = [](ConstTensorView from, TensorView to, StreamView stream) { copy(from, to, stream); };
constexpr auto add_views = [](ConstTensorView from, TensorView to, StreamView stream) { add(from, to, stream); };

TEST_F(TransferOnCuda, CopiesEveryPairOfTypes) {
  for (const DType from : kFloats) {
    for (const DType to : kFloats) {
      for (const Shape& a : kShapes) {
        expect_equal(a, a, from, to, copy_views);
        expect_equal(a, as(a, kShapes[6]), from, to, copy_views);
        expect_equal(a, as(a, kShapes[4]), from, to, copy_views);
      }
    }
  }
}

TEST_F(TransferOnCuda, AddsEveryPairOfTypes) {
  for (const DType from : kFloats) {
    for (const DType to : kFloats) {
      for (const Shape& a : kShapes) {
        expect_equal(a, a, from, to, add_views);
        expect_equal(a, as(a, kShapes[6]), from, to, add_views);
      }
    }
  }
}

std::vector<RowMove> shuffled_moves(std::int64_t rows, std::int64_t longest, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::int64_t> lengths;
  for (std::int64_t left = rows; left > 0; left -= lengths.back()) {
    lengths.push_back(std::min<std::int64_t>(left, 1 + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(longest))));
  }
  std::vector<RowMove> moves;
  std::int64_t from = 0;
  for (const std::int64_t length : lengths) moves.push_back(row_move(from, 0, length)), from += length;
  std::ranges::shuffle(moves, random);
  std::int64_t to = 0;
  for (RowMove& move : moves) {
    move = row_move(move.from, to, move.rows);
    to += move.rows;
  }
  moves.push_back({0, 0, 0});
  moves.erase(moves.begin() + static_cast<std::ptrdiff_t>(moves.size() / 2));  // one stretch of rows stays as it is
  return moves;
}

TEST_F(TransferOnCuda, MovesRows) {
  for (const auto& [rows, longest] : {std::pair<std::int64_t, std::int64_t>{40, 9}, {2000, 1}, {1500, 3}, {3000, 400}}) {
    const std::vector<RowMove> moves = shuffled_moves(rows, longest, 5);
    const auto move = [&](ConstTensorView from, TensorView to, StreamView stream) { move_rows(from, to, moves, stream); };
    for (const Shape& like : {kShapes[3], kShapes[6], kShapes[7], kShapes[1]}) {
      const Shape a{rows, like.heads, like.width, like.gap, like.pad, like.skip};
      for (const DType dtype : {DType::bf16, DType::f32, DType::f64}) expect_equal(a, a, dtype, dtype, move);
      expect_equal(a, as(a, kShapes[4]), DType::f32, DType::bf16, move);
      expect_equal(a, as(a, kShapes[6]), DType::bf16, DType::f32, move);
    }
  }
}

TEST_F(TransferOnCuda, MovesRowsWithStrides) {
  // Rows dealt to ranks in turn and back, and strides that are longer than the kernel's parameters hold.
  const std::int64_t rows = 140'000, ranks = 37;
  std::vector<RowMove> deal, collect, far{{1, 5, 2, 70'000, 66'000}, {0, 4, 2, 3, 80'000}, {9, 0, 2, 1, 2}};
  std::int64_t next = 0;
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    const std::int64_t own = (rows - rank + ranks - 1) / ranks;
    collect.push_back(row_move(next, rank, own, ranks));
    deal.push_back(collect.back().reversed());
    next += own;
  }
  for (const std::vector<RowMove>& moves : {deal, collect, far}) {
    const auto move = [&](ConstTensorView from, TensorView to, StreamView stream) { move_rows(from, to, moves, stream); };
    const Shape a{rows, 2, 3, 0, 0, 0}, spaced{rows, 2, 3, 1, 2, 0};
    expect_equal(a, spaced, DType::bf16, DType::bf16, move);
    expect_equal(spaced, a, DType::f32, DType::bf16, move);
  }
}

TEST_F(TransferOnCuda, LargeTensors) {
  const Shape large{5000, 8, 128, 0, 0, 0}, spaced{5000, 8, 128, 4, 0, 0};
  expect_equal(large, spaced, DType::bf16, DType::bf16, copy_views);
  expect_equal(spaced, large, DType::f32, DType::bf16, copy_views);
  expect_equal(large, spaced, DType::f32, DType::f32, add_views);
}

TEST_F(TransferOnCuda, ZerosAreZero) {
  const Stream stream = cuda::make_stream(0);
  const Tensor host = to_host(Tensor::zeros({1003}, DType::f32, Memory(stream.device())), stream);
  for (const float x : host.view().span<float>()) EXPECT_EQ(x, 0);
}

}  // namespace
}  // namespace periplus::kernels
