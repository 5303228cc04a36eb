// What tests of kernels on a device share: copies there, odd sizes, and comparisons with the CPU.
#pragma once

#include "runtime/tensor.h"
#include "tests/kernels/values.h"

namespace periplus::kernels {

using namespace periplus::test;

/// Element-wise functions, and sums that differ only in their order: one rounding to T apart, and some f32 (f64) roundings.
template <class T>
constexpr double kTolerance = 2.02 * rounding<T>() + 256 * rounding<Sum<T>>();

/// A copy on the device of a part of a host vector that starts `skip` elements in: odd ones spoil wide accesses.
template <class T>
class There {
 public:
  There(const std::vector<T>& values, const Stream& stream, std::int64_t skip = 0)
      : stream_(stream), count_(static_cast<std::int64_t>(values.size())), skip_(skip) {
    std::vector<T> padded(static_cast<std::size_t>(skip), T{});
    padded.insert(padded.end(), values.begin(), values.end());
    padded.push_back(narrowed<T>(kGuard));
    storage_ = to_device(test::view(padded, {count_ + skip + 1}), Memory(stream.device()), stream);
  }
  TensorView view(const Extents& shape) const { return storage_.view().slice(0, skip_, count_).reshape(shape); }
  std::vector<T> back() const {
    const Tensor host = to_host(storage_, stream_);
    const auto all = host.view().template span<T>();
    EXPECT_EQ(static_cast<double>(all.back()), kGuard) << "something was written behind the end";
    return {all.begin() + static_cast<std::ptrdiff_t>(skip_), all.end() - 1};
  }

 private:
  static constexpr double kGuard = 0.75;
  const Stream& stream_;
  std::int64_t count_, skip_;
  Tensor storage_;
};

struct Size {
  std::int64_t rows, columns, skip;
};
inline constexpr Size kSizes[] = {{0, 8, 0},     {1, 1, 0},    {3, 7, 1},  {5, 64, 0},    {33, 96, 0},
                                  {130, 129, 0}, {2, 5000, 0}, {3, 24, 3}, {1100, 40, 0}, {2, 12296, 0}};

/// body.template operator()<T>(size) for all types and sizes.
template <class Body>
void for_each_case(const Body& body) {
  for_each_storage_type([&]<class T>() {
    for (const Size& size : kSizes) {
      SCOPED_TRACE(testing::Message() << size.rows << " x " << size.columns << ", skip " << size.skip);
      body.template operator()<T>(size);
    }
  });
}

/// Two runs give the same bits, and these are close to the CPU's result.
template <class T>
void expect_agreement(const std::vector<T>& first, const std::vector<T>& second, const std::vector<T>& cpu, double tolerance,
                      double size = 1) {
  EXPECT_TRUE(same_bits(first, second)) << "two runs differ";
  expect_close(first, widened(cpu), tolerance, size);
}

}  // namespace periplus::kernels
