#include "launch/operand_file.h"

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "launch/suggest.h"
#include "runtime/error.h"

namespace periplus::launch {
namespace {

template <class Integer>
std::vector<std::int64_t> to_int64(std::span<const Integer> values) {
  return {values.begin(), values.end()};
}

}  // namespace

OperandFile::OperandFile(const std::filesystem::path& path, std::string_view operation, const std::vector<std::string>& names)
    : path_(path), file_(path) {
  for (const auto& [name, info] : file_.tensors()) {
    if (std::ranges::find(names, name) == names.end()) {
      refuse(fmt::format("{} has no operand '{}'{}; it takes {}, and nothing is ignored", operation, name, did_you_mean(name, names),
                         fmt::join(names, ", ")));
    }
  }
}

void OperandFile::refuse(std::string_view what) const { throw InvalidArgument(fmt::format("{}: {}", path_.string(), what)); }

ConstTensorView OperandFile::need(const std::string& name, int dims) const {
  if (!file_.contains(name)) refuse(fmt::format("there is no tensor '{}'", name));
  const TensorInfo& info = file_.tensors().at(name);
  if (static_cast<int>(info.shape.size()) != dims) {
    refuse(fmt::format("'{}' has {} dimensions; {} are expected", name, info.shape.size(), dims));
  }
  constexpr std::int64_t kLargest = 65536;  // as in training; a file without tokens may say anything
  if (dims > 1 && std::ranges::any_of(info.shape.begin() + 1, info.shape.end(), [](auto size) { return size < 1 || size > kLargest; })) {
    refuse(fmt::format("'{}' has shape [{}]; heads and widths lie between 1 and {}", name, fmt::join(info.shape, ", "), kLargest));
  }
  return file_.view(name);
}

ConstTensorView OperandFile::need(const std::string& name, const Extents& shape, std::string_view meaning) const {
  const ConstTensorView view = need(name, shape.dims);
  if (view.shape() != shape) {
    refuse(fmt::format("'{}' has shape {}; {} is expected: {}", name, to_string(view.shape()), to_string(shape), meaning));
  }
  return view;
}

void OperandFile::expect_dtype(const std::string& name, DType dtype, std::string_view reason) const {
  const DType found = dtype_of(name);
  if (found != dtype) refuse(fmt::format("'{}' is {}; {} is expected: {}", name, to_string(found), to_string(dtype), reason));
}

void OperandFile::expect_float(const std::string& name) const {
  const DType type = dtype_of(name);
  if (type != DType::f64 && type != DType::f32 && type != DType::bf16 && type != DType::f16) {
    refuse(fmt::format("'{}' is {}; F64, F32, BF16 and F16 are accepted", name, to_string(type)));
  }
}

Tensor OperandFile::in_accumulator_type(const std::string& name, ConstTensorView tensor, DType storage) const {
  const DType accumulator = accumulator_of(storage);
  if (tensor.dtype() != storage && tensor.dtype() != accumulator) {
    refuse(fmt::format("'{}' is {}; {} is expected, or the type of q", name, to_string(tensor.dtype()), to_string(accumulator)));
  }
  Tensor converted(tensor.shape(), accumulator, Memory());
  copy(tensor, converted);
  return converted;
}

std::vector<std::int64_t> OperandFile::documents(std::int64_t tokens) const {
  if (!file_.contains("cu_seqlens")) return {0, tokens};
  const ConstTensorView view = need("cu_seqlens", 1);
  if (view.dtype() != DType::i32 && view.dtype() != DType::i64) {
    refuse(fmt::format("'cu_seqlens' is {}; I32 and I64 are accepted", to_string(view.dtype())));
  }
  std::vector<std::int64_t> borders =
      view.dtype() == DType::i32 ? to_int64(view.span<std::int32_t>()) : to_int64(view.span<std::int64_t>());
  const bool covers = borders.size() >= 2 && borders.front() == 0 && borders.back() == tokens;
  if (!covers || !std::ranges::is_sorted(borders)) refuse(fmt::format("'cu_seqlens' must rise from 0 to the {} tokens of q", tokens));
  return borders;
}

}  // namespace periplus::launch
