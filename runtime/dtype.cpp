#include "runtime/dtype.h"

#include <array>
#include <string>

#include <fmt/format.h>

namespace periplus {
namespace {

constexpr std::array<DType, 7> kAllDTypes = {DType::f64, DType::f32, DType::bf16, DType::f16, DType::i64, DType::i32, DType::u8};

}  // namespace

std::string_view to_string(DType dtype) noexcept {
  switch (dtype) {
    case DType::f64:
      return "f64";
    case DType::f32:
      return "f32";
    case DType::bf16:
      return "bf16";
    case DType::f16:
      return "f16";
    case DType::i64:
      return "i64";
    case DType::i32:
      return "i32";
    case DType::u8:
      return "u8";
  }
  return "invalid";
}

DType dtype_from_string(std::string_view name) {
  std::string accepted;
  for (const DType dtype : kAllDTypes) {
    if (name == to_string(dtype)) return dtype;
    if (!accepted.empty()) accepted += ", ";
    accepted += to_string(dtype);
  }
  throw InvalidArgument(fmt::format("dtype: '{}' is not known; use one of {}", name, accepted));
}

void throw_unsupported_dtype(DType dtype, std::string_view operation) {
  throw InvalidArgument(fmt::format("{}: dtype {} is not supported", operation, to_string(dtype)));
}

}  // namespace periplus
