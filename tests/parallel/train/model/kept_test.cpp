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

// Rows of 65,536 tokens, filled by documents: 65,400 in one step and 65,530 in the next must not lock memory twice.
TEST(Kept, TakesHostMemoryForTheNextRowsToo) {
  for (const std::int64_t rows : {61441, 65400, 65530, 65536}) EXPECT_EQ(Kept::rows_on_host(rows), 65536) << rows;
  EXPECT_EQ(Kept::rows_on_host(65537), 73728);
  for (std::int64_t rows = 1; rows < 300; ++rows) {
    EXPECT_GE(Kept::rows_on_host(rows), rows);
    EXPECT_LE(Kept::rows_on_host(rows), rows + rows / 8 + 1) << rows;
  }
}

}  // namespace
}  // namespace periplus::train
