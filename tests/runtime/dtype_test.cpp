#include "runtime/dtype.h"

#include <cmath>
#include <limits>
#include <string>

#include <gtest/gtest.h>

namespace periplus {
namespace {

bfloat16 from_bits(std::uint32_t bits) {
  bfloat16 value;
  value.bits = static_cast<std::uint16_t>(bits);
  return value;
}

TEST(DType, NamesRoundTripAndUnknownNamesListTheKnownOnes) {
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16, DType::f16, DType::i64, DType::i32, DType::u8}) {
    EXPECT_EQ(dtype_from_string(to_string(dtype)), dtype);
  }
  EXPECT_EQ(to_string(DType::bf16), "bf16");
  for (const char* name : {"", "F32", "float", "f32 "}) {
    try {
      dtype_from_string(name);
      ADD_FAILURE() << name;
    } catch (const InvalidArgument& error) {
      EXPECT_NE(std::string(error.what()).find("f64, f32, bf16, f16, i64, i32, u8"), std::string::npos) << error.what();
    }
  }
}

TEST(DType, SizesAndAccumulators) {
  EXPECT_EQ(size_of(DType::f64) + size_of(DType::i64), 16U);
  EXPECT_EQ(size_of(DType::f32) + size_of(DType::i32), 8U);
  EXPECT_EQ(size_of(DType::bf16) + size_of(DType::f16) + size_of(DType::u8), 5U);
  EXPECT_EQ(accumulator_of(DType::f64), DType::f64);
  EXPECT_EQ(accumulator_of(DType::f32), DType::f32);
  EXPECT_EQ(accumulator_of(DType::bf16), DType::f32);
}

TEST(DType, VisitCallsExactlyTheMatchingTypeOrRefuses) {
  int calls = 0;
  visit_dtype<double, bfloat16>(DType::bf16, "test", [&]<class T>() { calls += std::is_same_v<T, bfloat16> ? 1 : 100; });
  EXPECT_EQ(calls, 1);
  try {
    visit_dtype<double, float>(DType::i64, "attend", []<class T>() { FAIL(); });
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_STREQ(error.what(), "attend: dtype i64 is not supported");
  }
}

TEST(Bfloat16, EveryPatternSurvivesTheWayThroughFloatAndDouble) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const bfloat16 value = from_bits(bits);
    const float wide = static_cast<float>(value);
    ASSERT_EQ(std::bit_cast<std::uint32_t>(wide), bits << 16);
    if (std::isnan(wide)) {
      const bfloat16 again(wide);
      ASSERT_TRUE(std::isnan(static_cast<float>(again))) << bits;
      ASSERT_EQ(again.bits & 0x8000U, bits & 0x8000U) << bits;
      ASSERT_TRUE(std::isnan(static_cast<double>(value)));
    } else {
      ASSERT_EQ(bfloat16(wide).bits, bits);
      ASSERT_EQ(static_cast<double>(value), static_cast<double>(wide));
    }
  }
}

TEST(Bfloat16, RoundsToNearestAndTiesToEven) {
  for (const std::uint32_t sign : {0U, 0x8000U}) {
    for (std::uint32_t magnitude = 0; magnitude < 0x7f80; ++magnitude) {
      const std::uint32_t lower = sign | magnitude;
      const std::uint32_t tie = (lower << 16) | 0x8000U;
      const std::uint32_t even = lower + (magnitude & 1U);
      ASSERT_EQ(bfloat16(std::bit_cast<float>(tie - 1)).bits, lower);
      ASSERT_EQ(bfloat16(std::bit_cast<float>(tie)).bits, even);
      ASSERT_EQ(bfloat16(std::bit_cast<float>(tie + 1)).bits, lower + 1);
    }
  }
}

TEST(Bfloat16, EveryNanPayloadStaysNan) {
  for (std::uint32_t payload = 1; payload < 0x800000; payload += 7) {
    ASSERT_TRUE(std::isnan(static_cast<float>(bfloat16(std::bit_cast<float>(0x7f800000U | payload))))) << payload;
  }
  EXPECT_EQ(bfloat16(std::numeric_limits<float>::max()).bits, 0x7f80U);
}

float16 half_from_bits(std::uint32_t bits) {
  float16 value;
  value.bits = static_cast<std::uint16_t>(bits);
  return value;
}

TEST(Float16, EveryPatternHasItsIeeeValueAndSurvivesTheWayThroughFloat) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float16 value = half_from_bits(bits);
    const double wide = static_cast<double>(value);
    const int exponent = static_cast<int>(bits >> 10 & 0x1f);
    const double fraction = bits & 0x3ff, sign = bits & 0x8000 ? -1 : 1;
    ASSERT_EQ(std::signbit(static_cast<float>(value)), (bits & 0x8000) != 0) << bits;
    if (exponent == 31 && fraction != 0) {
      ASSERT_TRUE(std::isnan(wide) && std::isnan(static_cast<double>(float16(static_cast<float>(value))))) << bits;
      continue;
    }
    if (exponent == 31) {
      ASSERT_EQ(wide, sign * std::numeric_limits<double>::infinity());
    } else {
      ASSERT_EQ(wide, sign * (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25))) << bits;
    }
    ASSERT_EQ(float16(static_cast<float>(value)).bits, bits);
  }
}

TEST(Float16, RoundsToNearestAndTiesToEvenUpToInfinity) {
  for (const std::uint32_t sign : {0U, 0x8000U}) {
    for (std::uint32_t magnitude = 0; magnitude < 0x7c00; ++magnitude) {
      const std::uint32_t lower = sign | magnitude;
      const float below = static_cast<float>(half_from_bits(lower));
      // Past the largest number, infinity rounds as if it were the next one.
      const float above = magnitude == 0x7bff ? (sign != 0 ? -65536.0f : 65536.0f) : static_cast<float>(half_from_bits(lower + 1));
      const float tie = (below + above) / 2;
      ASSERT_EQ(float16(std::nextafter(tie, below)).bits, lower);
      ASSERT_EQ(float16(tie).bits, lower + (magnitude & 1U));
      ASSERT_EQ(float16(std::nextafter(tie, above)).bits, lower + 1);
    }
  }
  EXPECT_EQ(float16(1e-30f).bits, 0U);
  EXPECT_EQ(float16(-std::numeric_limits<float>::max()).bits, 0xfc00U);
}

TEST(Float16, EveryNanPayloadStaysNan) {
  for (std::uint32_t payload = 1; payload < 0x800000; payload += 7) {
    ASSERT_TRUE(std::isnan(static_cast<float>(float16(std::bit_cast<float>(0x7f800000U | payload))))) << payload;
  }
}

}  // namespace
}  // namespace periplus
