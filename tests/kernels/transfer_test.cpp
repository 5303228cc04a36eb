#include "kernels/transfer.h"

#include <gtest/gtest.h>

#include "runtime/error.h"

namespace periplus::kernels {
namespace {

Tensor counting(const Extents& shape) {
  Tensor tensor(shape, DType::f32, Memory());
  float next = 0;
  for (float& x : tensor.view().span<float>()) x = next++;
  return tensor;
}

template <class Body>
std::string refusal(Body&& body) {
  try {
    body();
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "not refused";
}

TEST(Transfer, MovesRowsAndLeavesTheOthers) {
  const Tensor source = counting({6, 2, 3}), destination = Tensor::zeros({6, 2, 3}, DType::bf16, Memory());
  const std::vector<RowMove> moves{{0, 4, 2}, {3, 1, 1}};
  int progressed = 0;
  move_rows(source, destination, moves, Stream([&] { ++progressed; }));
  const auto got = destination.view().span<bfloat16>();
  const int rows[] = {-1, 3, -1, -1, 0, 1};
  for (std::size_t i = 0; i < got.size(); ++i) {
    const int row = rows[i / 6];
    EXPECT_EQ(static_cast<float>(got[i]), row < 0 ? 0.0F : static_cast<float>(row * 6) + static_cast<float>(i % 6)) << i;
  }
}

TEST(Transfer, MovesRowsWithStrides) {
  const Tensor source = counting({9, 2, 3}), destination = Tensor::zeros({12, 2, 3}, DType::f32, Memory());
  const std::vector<RowMove> moves{{0, 1, 4, 1, 3}, {8, 0, 1, 5, 7}, {5, 2, 2, 2, 1}, {4, 6, 2, 2, 2}};
  move_rows(source, destination, moves, Stream());
  const auto got = destination.view().span<float>();
  const int rows[] = {8, 0, 5, 7, 1, -1, 4, 2, 6, -1, 3, -1};
  for (std::size_t i = 0; i < got.size(); ++i) {
    const int row = rows[i / 6];
    EXPECT_EQ(got[i], row < 0 ? 0.0F : static_cast<float>(row * 6) + static_cast<float>(i % 6)) << i;
  }
}

TEST(Transfer, MessagesMoveInBetween) {
  int progressed = 0;
  const Stream stream([&] { ++progressed; });
  const Tensor source = counting({64, 8, 1024}), destination = Tensor::zeros({64, 8, 1024}, DType::f32, Memory());
  copy(source, destination, stream);
  EXPECT_EQ(progressed, 16);
  add(source, destination, stream);
  EXPECT_EQ(progressed, 32);
  for (std::size_t i = 0; i < 64 * 8 * 1024; ++i) {
    ASSERT_EQ(destination.view().span<float>()[i], 2 * source.view().span<float>()[i]) << i;
  }
}

TEST(Transfer, RefusesWhatItCannotDo) {
  const Tensor a = counting({4, 2, 3}), b = counting({5, 2, 3}), c = counting({4, 3, 3});
  const Stream stream;
  EXPECT_EQ(refusal([&] { copy(a, b, stream); }), "copy: source shape [4, 2, 3] differs from destination shape [5, 2, 3]");
  EXPECT_EQ(refusal([&] { add(a, c, stream); }), "add: rows of source [4, 2, 3] and destination [4, 3, 3] differ in shape");
  const RowMove outside{2, 0, 3};
  EXPECT_EQ(refusal([&] {
              move_rows(a, b, {&outside, 1}, stream);
            }),
            "move_rows: 3 rows from 2 to 0, strides 1 and 1, do not lie inside source [4, 2, 3] and destination [5, 2, 3]");
  for (const RowMove& move : {RowMove{0, 0, 3, 2, 1}, RowMove{0, 0, 3, 1, 3}, RowMove{0, 0, 1, 0, 1}, RowMove{3, 0, 2, 1, 1}}) {
    EXPECT_NE(refusal([&] { move_rows(a, b, {&move, 1}, stream); }), "not refused");
  }
  const TensorView columns(b.view().bytes(), DType::f32, {4, 2, 3}, {2, 1, 8});
  EXPECT_EQ(refusal([&] { copy(a, columns, stream); }), "copy: destination has width stride 8; the width must be contiguous");
  EXPECT_EQ(refusal([&] {
              copy(a, a.view().reshape({8, 3}), stream);
            }),
            "copy: destination has shape [8, 3], expected 3 dimensions");
}

TEST(Transfer, RowsBeyond32BitsAreRefused) {
  constexpr std::int64_t kLast = 0x7fffffff;
  EXPECT_EQ(row_move(kLast, 0, 1).from, kLast);
  EXPECT_EQ(refusal([] { row_move(0, kLast + 1, 1); }),
            "row 2147483648 of a rank or group of ranks cannot be moved; rows must be below 2^31: use more ranks");
  EXPECT_NE(refusal([] { row_move(0, 0, 1, kLast + 1); }), "not refused");
}

}  // namespace
}  // namespace periplus::kernels
