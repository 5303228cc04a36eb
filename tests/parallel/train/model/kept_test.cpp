#include "parallel/train/model/kept.h"

#include <gtest/gtest.h>

#include "runtime/error.h"

namespace periplus::train {
namespace {

TEST(Kept, HasRoomAgainWhereThereWasNoneForMore) {
  const Memory memory;
  Kept kept(3, {{{8}, DType::f32}}, memory, false);
  kept.resize(10);
  EXPECT_THROW(kept.resize(std::int64_t{1} << 58), DeviceError);
  kept.resize(5);
  EXPECT_EQ(memory.account().current_bytes(), 3 * 5 * 8 * sizeof(float));
}

}  // namespace
}  // namespace periplus::train
