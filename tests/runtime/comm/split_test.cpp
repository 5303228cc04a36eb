#include "runtime/comm/split.h"

#include <gtest/gtest.h>

#include "runtime/error.h"

namespace periplus::comm {
namespace {

TEST(Split, FragmentsTileAMessageOfAnySize) {
  constexpr std::size_t kOne = 1;
  for (const std::size_t bytes : {std::size_t{0}, kOne, kFragmentBytes - 1, kFragmentBytes, kFragmentBytes + 1, 2 * kFragmentBytes,
                                  (kOne << 31) - 1, (kOne << 31) + 1, (kOne << 32) + 12345, kOne << 40}) {
    SCOPED_TRACE(bytes);
    std::size_t offset = 0;
    for (std::size_t index = 0; index < fragment_count(bytes); ++index) {
      const Fragment piece = fragment(bytes, index);
      ASSERT_EQ(piece.offset, offset);
      ASSERT_GT(piece.bytes, 0);
      ASSERT_LE(static_cast<std::size_t>(piece.bytes), kFragmentBytes);
      offset += static_cast<std::size_t>(piece.bytes);
    }
    EXPECT_EQ(offset, bytes);
  }
}

TEST(Split, CountsAreMinimal) {
  EXPECT_EQ(fragment_count(0), 0U);
  EXPECT_EQ(fragment_count(1), 1U);
  EXPECT_EQ(fragment_count(kFragmentBytes), 1U);
  EXPECT_EQ(fragment_count(kFragmentBytes + 1), 2U);
  EXPECT_EQ(fragment_count(std::size_t{1} << 40), std::size_t{1} << 20);
  EXPECT_EQ(fragment_count(~std::size_t{0}), std::size_t{1} << 44);
}

TEST(Split, FragmentPastTheEndIsRefused) {
  EXPECT_THROW(fragment(0, 0), InternalError);
  EXPECT_THROW(fragment(kFragmentBytes, 1), InternalError);
}

}  // namespace
}  // namespace periplus::comm
