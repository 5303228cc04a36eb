#include "runtime/tensor.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include <gtest/gtest.h>

#include "runtime/device_tensor.h"
#include "runtime/error.h"
#include "tests/runtime/scratch_folder.h"

namespace periplus {
namespace {

/// Nearest T = bfloat16 or float16, ties to even, by comparing candidates instead of by bit tricks.
template <class T>
T nearest(double value) {
  const T guess(static_cast<float>(value));
  if (!std::isfinite(value) || !std::isfinite(static_cast<double>(guess))) return guess;
  T best;
  double best_distance = std::numeric_limits<double>::infinity();
  for (int delta = -1; delta <= 1; ++delta) {
    T candidate;
    candidate.bits = static_cast<std::uint16_t>(guess.bits + delta);
    const double distance = std::abs(static_cast<double>(candidate) - value);
    if (distance < best_distance || (distance == best_distance && candidate.bits % 2 == 0)) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

double get(const std::byte* at, DType dtype) {
  double result = 0;
  visit_dtype<double, float, bfloat16, float16>(dtype, "test", [&]<class T>() {
    T value;
    std::memcpy(&value, at, sizeof(T));
    result = static_cast<double>(value);
  });
  return result;
}

double rounded_to(double value, DType dtype) {
  if (dtype == DType::f64) return value;
  if (dtype == DType::f32) return static_cast<double>(static_cast<float>(value));
  return dtype == DType::f16 ? static_cast<double>(nearest<float16>(value)) : static_cast<double>(nearest<bfloat16>(value));
}

/// A tensor inside padded, possibly permuted storage.
struct Strided {
  Tensor storage;
  TensorView view;

  Strided(const Extents& shape, DType dtype, int variant, std::mt19937& random) {
    std::vector<int> order(static_cast<std::size_t>(shape.dims));
    for (int dim = 0; dim < shape.dims; ++dim) order[static_cast<std::size_t>(dim)] = variant == 2 ? shape.dims - 1 - dim : dim;
    Extents strides = shape;
    std::int64_t stride = variant == 3 ? 2 : 1;
    for (auto dim = order.rbegin(); dim != order.rend(); ++dim) {
      strides[*dim] = stride;
      stride *= shape[*dim] + (variant == 1 && dim == order.rbegin() ? 3 : 0);
    }
    storage = Tensor({stride + 1}, dtype, Memory());
    view = TensorView(storage.view().bytes(), dtype, shape, strides);
    std::normal_distribution<double> normal;
    visit_dtype<double, float, bfloat16, float16>(dtype, "test", [&]<class T>() {
      for (T& value : storage.view().span<T>()) value = T(static_cast<float>(normal(random)));
      if constexpr (std::is_same_v<T, double>) {
        for (T& value : storage.view().span<T>()) value = normal(random) * 1.000000001;
      }
    });
  }
};

template <class Visit>
void for_each_index(const Extents& shape, const Visit& visit) {
  Extents index = shape;
  for (std::int64_t flat = 0; flat < shape.product(); ++flat) {
    std::int64_t rest = flat;
    for (int dim = shape.dims - 1; dim >= 0; --dim) {
      index[dim] = rest % shape[dim];
      rest /= shape[dim];
    }
    visit(index);
  }
}

std::int64_t offset(const TensorView& view, const Extents& index) {
  std::int64_t elements = 0;
  for (int dim = 0; dim < view.dims(); ++dim) elements += index[dim] * view.stride(dim);
  return elements;
}

const std::byte* at(const TensorView& view, const Extents& index) {
  return view.bytes() + offset(view, index) * static_cast<std::int64_t>(size_of(view.dtype()));
}

std::vector<std::byte> bytes_of(const Tensor& tensor) {
  const TensorView view = tensor.view();
  return {view.bytes(), view.bytes() + view.size_bytes()};
}

/// Runs copy or add and compares every byte of the destination's storage, gaps included, with element-wise arithmetic.
void check(bool adds, const Extents& shape, DType from, int from_variant, DType to, int to_variant) {
  SCOPED_TRACE(std::string(adds ? "add " : "copy ") + to_string(shape) + " " + std::string(to_string(from)) + "/" +
               std::to_string(from_variant) + " -> " + std::string(to_string(to)) + "/" + std::to_string(to_variant));
  std::mt19937 random(7);
  const Strided source(shape, from, from_variant, random);
  const Strided destination(shape, to, to_variant, random);
  std::vector<std::byte> expected = bytes_of(destination.storage);
  const bool is_f32_sum = from != DType::f64 && to != DType::f64;
  for_each_index(shape, [&](const Extents& index) {
    const double value = get(at(source.view, index), from);
    const double old = get(at(destination.view, index), to);
    const double sum = is_f32_sum ? static_cast<double>(static_cast<float>(old) + static_cast<float>(value)) : old + value;
    const double result = rounded_to(adds ? sum : value, to);
    visit_dtype<double, float, bfloat16, float16>(to, "test", [&]<class T>() {
      T stored{};
      if constexpr (sizeof(T) == 2) {
        stored = nearest<T>(result);
      } else {
        stored = static_cast<T>(result);
      }
      std::memcpy(expected.data() + offset(destination.view, index) * static_cast<std::int64_t>(sizeof(T)), &stored, sizeof(T));
    });
  });
  adds ? add(source.view, destination.view) : copy(source.view, destination.view);
  EXPECT_TRUE(bytes_of(destination.storage) == expected);
}

TEST(Tensor, CopyAndAddMatchElementwiseArithmeticForAllTypesAndStrides) {
  const std::vector<Extents> shapes = {{}, {0}, {1}, {17}, {3, 0, 2}, {5, 3}, {1, 6}, {6, 1}, {4, 3, 5}, {2, 3, 4, 5}, {1, 3, 1, 5}};
  const DType types[] = {DType::f64, DType::f32, DType::bf16, DType::f16};
  for (const Extents& shape : shapes) {
    for (const DType from : types) {
      for (const DType to : types) {
        for (int variants = 0; variants < 16; ++variants) {
          check(false, shape, from, variants / 4, to, variants % 4);
          check(true, shape, from, variants / 4, to, variants % 4);
        }
      }
    }
  }
}

TEST(Tensor, CopyAndAddAreRightWhereTheyRunInParallelChunks) {
  for (const Extents& shape : {Extents{300001}, Extents{700, 3, 211}, Extents{9, 33000}}) {
    for (int variant = 0; variant < 4; ++variant) {
      check(false, shape, DType::f32, variant, DType::f32, 0);
      check(false, shape, DType::f64, 0, DType::bf16, variant);
      check(true, shape, DType::bf16, variant, DType::f32, 0);
    }
  }
}

TEST(Tensor, DoubleToBfloat16RoundsOnce) {
  // Each lies just beyond a bf16 tie, by less than a float can tell.
  const double tie = 1.0 + std::ldexp(1.0, -8);
  std::vector<double> values = {
      tie,   std::nextafter(tie, 2.0), std::nextafter(tie, 0.0), -std::nextafter(tie, 2.0), 1e300, -1e300, 1e-300, -1e-300, 0.0, -0.0,
      3.0e38};
  const std::uint16_t expected[] = {0x3f80, 0x3f81, 0x3f80, 0xbf81, 0x7f80, 0xff80, 0, 0x8000, 0, 0x8000, 0x7f62};
  std::vector<bfloat16> results(values.size());
  const auto count = static_cast<std::int64_t>(values.size());
  const TensorView from(reinterpret_cast<std::byte*>(values.data()), DType::f64, {count});
  const TensorView to(reinterpret_cast<std::byte*>(results.data()), DType::bf16, {count});
  copy(from, to);
  for (std::size_t i = 0; i < values.size(); ++i) EXPECT_EQ(results[i].bits, expected[i]) << values[i];
  values = {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity()};
  copy(from.slice(0, 0, 3), to.slice(0, 0, 3));
  EXPECT_TRUE(std::isnan(static_cast<float>(results[0])));
  EXPECT_EQ(results[1].bits, 0x7f80);
  EXPECT_EQ(results[2].bits, 0xff80);
}

TEST(Tensor, SameTypeCopyMovesEveryDTypeBitForBit) {
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16, DType::f16, DType::i64, DType::i32, DType::u8}) {
    SCOPED_TRACE(to_string(dtype));
    const auto size = static_cast<std::int64_t>(size_of(dtype));
    std::vector<std::byte> bytes(static_cast<std::size_t>(6 * size));
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(0xff - i);  // NaN patterns included
    const ConstTensorView source(bytes.data(), dtype, {2, 3});
    const Tensor dense({2, 3}, dtype, Memory());
    copy(source, dense);
    EXPECT_TRUE(bytes_of(dense) == bytes);
    const Tensor turned({3, 2}, dtype, Memory());
    copy(source, TensorView(turned.view().bytes(), dtype, {2, 3}, {1, 2}));
    EXPECT_EQ(std::memcmp(turned.view().bytes() + 3 * size, bytes.data() + 4 * size, size_of(dtype)), 0);
  }
}

TEST(Tensor, UnalignedMemoryIsReadCorrectly) {
  std::vector<std::byte> bytes(8 * 100 + 1);
  for (std::size_t i = 0; i < 100; ++i) {
    const double value = static_cast<double>(i);
    std::memcpy(bytes.data() + 1 + 8 * i, &value, 8);
  }
  const Tensor result({100}, DType::f32, Memory());
  copy(ConstTensorView(bytes.data() + 1, DType::f64, {100}), result);
  for (std::size_t i = 0; i < 100; ++i) EXPECT_EQ(result.view().span<float>()[i], static_cast<float>(i));
}

TEST(Tensor, CopyAndAddRefuseWhatTheyCannotDo) {
  const Memory memory;
  const Tensor two({2}, DType::f32, memory);
  const Tensor three({3}, DType::f32, memory);
  const Tensor integers({2}, DType::i64, memory);
  EXPECT_NE(test::message_of<InvalidArgument>([&] { copy(two, three); }).find("[2]"), std::string::npos);
  EXPECT_NE(test::message_of<InvalidArgument>([&] { copy(integers, two); }).find("i64"), std::string::npos);
  EXPECT_NE(test::message_of<InvalidArgument>([&] { add(integers, integers); }).find("i64"), std::string::npos);
  EXPECT_NE(test::message_of<InvalidArgument>([&] { copy(ConstTensorView(), TensorView()); }).find("no memory"), std::string::npos);
}

TEST(Tensor, ExtentsKnowProductStridesAndText) {
  EXPECT_EQ((Extents{2, 3, 4}).product(), 24);
  EXPECT_EQ(Extents{}.product(), 1);
  EXPECT_EQ((Extents{2, 0}).product(), 0);
  EXPECT_EQ(to_string(Extents{2, 3}), "[2, 3]");
  EXPECT_EQ(to_string(Extents{}), "[]");
  EXPECT_EQ(dense_strides({2, 3, 4}), (Extents{12, 4, 1}));
  const std::vector<std::int64_t> five = {1, 2, 3, 4, 5};
  EXPECT_NE(test::message_of<InvalidArgument>([&] { const Extents extents{std::span(five)}; }).find("[1, 2, 3, 4, 5]"), std::string::npos);
}

TEST(Tensor, SliceAndReshapeKeepTheirElements) {
  const Tensor tensor = Tensor::zeros({4, 6}, DType::i32, Memory());
  for (int i = 0; i < 24; ++i) tensor.view().data<std::int32_t>()[i] = i;
  const TensorView columns = tensor.view().slice(1, 2, 3);
  EXPECT_EQ(columns.shape(), (Extents{4, 3}));
  EXPECT_EQ(*columns.slice(0, 3, 1).data<std::int32_t>(), 20);
  EXPECT_FALSE(columns.contiguous());
  EXPECT_TRUE(columns.slice(0, 1, 1).contiguous());
  EXPECT_TRUE(columns.slice(0, 4, 0).contiguous());
  EXPECT_EQ(tensor.view().reshape({2, 2, 6}).slice(0, 1, 1).data<std::int32_t>()[0], 12);
  EXPECT_THROW(columns.reshape({12}), InvalidArgument);
  EXPECT_THROW(tensor.view().reshape({5, 5}), InvalidArgument);
  EXPECT_THROW(tensor.view().slice(2, 0, 1), InvalidArgument);
  EXPECT_THROW(tensor.view().slice(-1, 0, 1), InvalidArgument);
  EXPECT_THROW(tensor.view().slice(0, 3, 2), InvalidArgument);
  EXPECT_THROW(tensor.view().slice(0, -1, 2), InvalidArgument);
  EXPECT_THROW(tensor.view().slice(0, 1, std::numeric_limits<std::int64_t>::max()), InvalidArgument);
  EXPECT_THROW(tensor.view().data<float>(), Error);
}

TEST(Tensor, FillZeroTouchesOnlyTheView) {
  const Tensor tensor({3, 4, 5}, DType::u8, Memory());
  std::memset(tensor.view().bytes(), 1, 60);
  fill_zero(tensor.view().slice(1, 1, 2).slice(2, 0, 3));
  int zeros = 0;
  for (int i = 0; i < 60; ++i) zeros += tensor.view().bytes()[i] == std::byte{0} ? 1 : 0;
  EXPECT_EQ(zeros, 3 * 2 * 3);
  EXPECT_EQ(tensor.view().bytes()[5], std::byte{0});
  fill_zero(tensor);
  EXPECT_EQ(tensor.view().bytes()[59], std::byte{0});
}

TEST(Tensor, ImpossibleShapesAreRefused) {
  const Memory memory;
  EXPECT_THROW(Tensor({-1}, DType::f32, memory), InvalidArgument);
  EXPECT_THROW(Tensor({std::int64_t{1} << 40, std::int64_t{1} << 40}, DType::f32, memory), InvalidArgument);
  const Tensor empty({4, 0}, DType::f32, memory);
  EXPECT_EQ(empty.view().size_bytes(), 0U);
  EXPECT_EQ(empty.view().slice(0, 3, 1).elements(), 0);
}

TEST(Devices, HostMemoryIsOnlyCopiedAndOthersAreRefused) {
  Tensor gapped({3, 4}, DType::f32, Memory());
  float next = 0;
  for (float& x : gapped.view().span<float>()) x = next++;
  const TensorView part = gapped.view().slice(1, 1, 2);
  const Memory memory;
  for (const Tensor& dense : {to_device(part, memory, Stream()), to_device(part, memory), to_host(part, Stream())}) {
    const std::vector<float> got(dense.view().span<float>().begin(), dense.view().span<float>().end());
    EXPECT_EQ(got, (std::vector<float>{1, 2, 5, 6, 9, 10}));
  }
  const Stream device({DeviceKind::cuda, 0}, nullptr);
  EXPECT_THROW(to_device(part, memory, device), InvalidArgument);
  EXPECT_THROW(to_host(part, device), InvalidArgument) << "not contiguous";
  EXPECT_THROW(upload(part, part, device), InvalidArgument) << "not contiguous";
  EXPECT_THROW(fill_zero(part, device), InvalidArgument) << "not contiguous";
  Tensor wide({3, 2}, DType::f64, Memory());
  upload(part, wide, Stream());
  EXPECT_EQ(wide.view().span<double>()[5], 10);
  fill_zero(part, Stream());
  EXPECT_EQ(gapped.view().span<float>()[5], 0);
  EXPECT_EQ(gapped.view().span<float>()[4], 4) << "outside the view";
}

}  // namespace
}  // namespace periplus
