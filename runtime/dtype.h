#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "runtime/error.h"

namespace periplus {

/// Element types. f16 is accepted by blockwise attention and by copies; the transformer kernels compute with bf16 and up.
enum class DType : std::uint8_t { f64, f32, bf16, f16, i64, i32, u8 };

constexpr std::size_t size_of(DType dtype) noexcept {
  switch (dtype) {
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
    case DType::f16:
      return 2;
    case DType::u8:
      return 1;
  }
  return 0;
}

/// "f64", "bf16", ...
std::string_view to_string(DType dtype) noexcept;

/// Inverse of to_string. Throws InvalidArgument that lists the accepted names.
DType dtype_from_string(std::string_view name);

/// Storage-only bfloat16: the upper half of an f32. Conversion from float rounds to nearest even; NaN stays NaN.
struct bfloat16 {
  std::uint16_t bits = 0;

  bfloat16() = default;
  explicit bfloat16(float value) noexcept {
    std::uint32_t word = std::bit_cast<std::uint32_t>(value);
    if ((word & 0x7fffffffu) > 0x7f800000u) {
      bits = static_cast<std::uint16_t>((word >> 16) | 0x40u);
      return;
    }
    word += 0x7fffu + ((word >> 16) & 1u);
    bits = static_cast<std::uint16_t>(word >> 16);
  }
  explicit operator float() const noexcept { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }
  explicit operator double() const noexcept { return static_cast<double>(static_cast<float>(*this)); }
};

/// Storage-only IEEE half precision. Conversion from float rounds to nearest even, subnormals included; 65520 and more become
/// infinity; NaN stays NaN.
struct float16 {
  std::uint16_t bits = 0;

  float16() = default;
  explicit float16(float value) noexcept {
    const std::uint32_t word = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t magnitude = word & 0x7fffffffu;
    std::uint32_t half = 0;
    if (magnitude > 0x7f800000u) {
      half = 0x7e00u | (magnitude >> 13 & 0x1ffu);
    } else if (magnitude >= 0x477ff000u) {
      half = 0x7c00u;
    } else if (magnitude < 0x38800000u) {
      // The spacing of floats from 1/2 to 1 is that of f16 subnormals: the addition rounds.
      half = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
    } else {
      half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    }
    bits = static_cast<std::uint16_t>(half | (word >> 16 & 0x8000u));
  }
  explicit operator float() const noexcept {
    const std::uint32_t magnitude = (bits & 0x7fffu) << 13;
    const std::uint32_t word =
        magnitude >= 0x0f800000u ? magnitude + 0x70000000u : std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
    return std::bit_cast<float>(word | (bits & 0x8000u) << 16);
  }
  explicit operator double() const noexcept { return static_cast<double>(static_cast<float>(*this)); }
};

template <class T>
constexpr DType no_dtype() = delete;
/// That of a C++ type; other types do not compile.
template <class T>
inline constexpr DType dtype_of = no_dtype<T>();
template <>
inline constexpr DType dtype_of<double> = DType::f64;
template <>
inline constexpr DType dtype_of<float> = DType::f32;
template <>
inline constexpr DType dtype_of<bfloat16> = DType::bf16;
template <>
inline constexpr DType dtype_of<float16> = DType::f16;
template <>
inline constexpr DType dtype_of<std::int64_t> = DType::i64;
template <>
inline constexpr DType dtype_of<std::int32_t> = DType::i32;
template <>
inline constexpr DType dtype_of<std::uint8_t> = DType::u8;
template <>
inline constexpr DType dtype_of<std::byte> = DType::u8;

/// Type of accumulators, running attention state and partial gradients that belongs to a storage type.
constexpr DType accumulator_of(DType storage) noexcept { return storage == DType::f64 ? DType::f64 : DType::f32; }

[[noreturn]] void throw_unsupported_dtype(DType dtype, std::string_view operation);

/// Calls `fn.template operator()<T>()` with the C++ type of `dtype`, which must be one of Candidates; else InvalidArgument.
/// Use once per operation, at its outermost host function.
template <class... Candidates, class Fn>
void visit_dtype(DType dtype, std::string_view operation, Fn&& fn) {
  const bool matched = ((dtype == dtype_of<Candidates> && (fn.template operator()<Candidates>(), true)) || ...);
  if (!matched) throw_unsupported_dtype(dtype, operation);
}

}  // namespace periplus
