#include "kernels/cuda/tensor_map.h"

#include <vector>

#include <gtest/gtest.h>

// Descriptors for the copy engine, as far as they can be judged without a GPU: what they ask of a view, and what they say.
namespace periplus::kernels::cuda {
namespace {

class TensorMap : public testing::Test {
 protected:
  ConstTensorView view(DType dtype, const Extents& shape, const Extents& strides, std::size_t offset = 0) const {
    return {data_ + offset, dtype, shape, strides};
  }

 private:
  alignas(256) std::byte data_[256] = {};
};

TEST_F(TensorMap, TakesStridedViewsOfWholeSixteenBytes) {
  EXPECT_EQ(box_refusal(view(DType::bf16, {100, 4, 128}, {512, 128, 1})), "");
  EXPECT_EQ(box_refusal(view(DType::bf16, {100, 4, 40}, {4096, 48, 1})), "");
  EXPECT_EQ(box_refusal(view(DType::f32, {7, 3, 4}, {12, 4, 1})), "");
}

TEST_F(TensorMap, SaysWhyItRefusesAView) {
  EXPECT_NE(box_refusal(view(DType::bf16, {100, 4, 128}, {512, 128, 1}, 8)).find("aligned to 16"), std::string::npos);
  EXPECT_NE(box_refusal(view(DType::bf16, {100, 4, 36}, {4 * 36, 36, 1})).find("72 bytes along dimension 1"), std::string::npos);
  EXPECT_NE(box_refusal(view(DType::bf16, {100, 1, 8}, {12, 8, 1})).find("24 bytes along dimension 0"), std::string::npos);
  EXPECT_NE(box_refusal(view(DType::bf16, {0, 4, 128}, {512, 128, 1})), "");
}

// The encoder looks at strides that are never used.
TEST_F(TensorMap, GivesLoneDimensionsAStrideThatIsAllowed) {
  const ConstTensorView lone = view(DType::bf16, {1, 1, 8}, {3, 5, 1});
  EXPECT_EQ(box_refusal(lone), "");
  EXPECT_EQ(plan_boxes(lone, 64).strides[0] % 16, 0U);
  EXPECT_EQ(plan_boxes(lone, 64).strides[1] % 16, 0U);
}

TEST_F(TensorMap, BoxesAre128BytesWideAndOneHeadDeep) {
  const BoxPlan plan = plan_boxes(view(DType::bf16, {100, 4, 96}, {512, 128, 1}), 64);
  EXPECT_EQ(plan.type, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16);
  EXPECT_EQ(plan.extents[0], 96U);
  EXPECT_EQ(plan.extents[1], 100U);
  EXPECT_EQ(plan.extents[2], 4U);
  EXPECT_EQ(plan.strides[0], 1024U);
  EXPECT_EQ(plan.strides[1], 256U);
  EXPECT_EQ(plan.box[0], 64U);
  EXPECT_EQ(plan.box[1], 64U);
  EXPECT_EQ(plan.box[2], 1U);
  EXPECT_EQ(plan_boxes(view(DType::f32, {7, 3, 4}, {12, 4, 1}), 64).box[0], 32U);
  EXPECT_EQ(plan_boxes(view(DType::f16, {7, 3, 8}, {24, 8, 1}), 128).type, CU_TENSOR_MAP_DATA_TYPE_FLOAT16);
}

}  // namespace
}  // namespace periplus::kernels::cuda
