// Memory of a device: freed blocks come back, and are given up where they are missed. And tensors that move between host and device.
#include "runtime/memory.h"

#include <vector>

#include <gtest/gtest.h>

#include "runtime/cuda/device.h"
#include "runtime/device_tensor.h"
#include "runtime/error.h"

namespace periplus {
namespace {

class CudaMemory : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device: " << cuda::unavailable_reason();
  }
};

constexpr std::size_t kMiB = std::size_t{1} << 20;

TEST_F(CudaMemory, FreedBlocksComeBackForSizesAboutAsLarge) {
  std::byte* const block = cuda::allocate(0, 64 * kMiB);
  ASSERT_NE(block, nullptr);
  cuda::release(0, block);
  std::byte* const smaller = cuda::allocate(0, 60 * kMiB);
  EXPECT_EQ(smaller, block);
  std::byte* const other = cuda::allocate(0, 60 * kMiB);
  EXPECT_NE(other, block);
  cuda::release(0, smaller);
  // Half of a kept block would be wasted.
  std::byte* const half = cuda::allocate(0, 32 * kMiB);
  EXPECT_NE(half, block);
  for (std::byte* const data : {other, half}) cuda::release(0, data);
}

TEST_F(CudaMemory, KeptBlocksDoNotStandInTheWay) {
  const std::size_t part = cuda::known_properties(0).memory_bytes / 16;
  std::byte* const kept = cuda::allocate(0, part);
  ASSERT_NE(kept, nullptr);
  cuda::release(0, kept);
  // Nearly all that is free now, and what was kept: it is there only if that is given up.
  const std::size_t most = cuda::properties(0).free_bytes + part / 2;
  std::byte* const large = cuda::allocate(0, most);
  EXPECT_NE(large, nullptr);
  cuda::release(0, large);
}

TEST_F(CudaMemory, TooMuchIsSaidAndHarmless) {
  EXPECT_EQ(cuda::allocate(0, std::size_t{1} << 50), nullptr);
  EXPECT_THROW(Buffer(std::size_t{1} << 50, Memory({DeviceKind::cuda, 0})), DeviceError);
  std::byte* const block = cuda::allocate(0, kMiB);
  EXPECT_NE(block, nullptr);
  cuda::release(0, block);
}

TEST_F(CudaMemory, TensorsAreConvertedOnTheirWay) {
  const Stream stream = cuda::make_stream(0);
  const std::vector<double> values = {1, -2.5, 3, 0};
  const ConstTensorView host(reinterpret_cast<const std::byte*>(values.data()), DType::f64, {4});
  const Tensor there({4}, DType::f32, Memory({DeviceKind::cuda, 0}));
  upload(host, there, stream);
  EXPECT_EQ(to_host(there, stream).view().span<float>()[1], -2.5F);
  fill_zero(there.view().slice(0, 1, 2), stream);
  const Tensor back = to_host(there, stream);
  EXPECT_EQ(back.view().span<float>()[0], 1.0F);
  EXPECT_EQ(back.view().span<float>()[1], 0.0F);
  const TensorView strided(there.view().bytes(), DType::f32, {2}, {2});
  EXPECT_THROW(fill_zero(strided, stream), InvalidArgument);
  EXPECT_THROW(upload(host.slice(0, 0, 2), strided, stream), InvalidArgument);
  EXPECT_THROW(upload(host.slice(0, 0, 2), there, stream), InvalidArgument);
}

}  // namespace
}  // namespace periplus
