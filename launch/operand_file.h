#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/safetensors.h"

namespace periplus::launch {

/// The input file of `apply`: named operands whose shapes and dtypes are checked as they are asked for. Every error is an
/// InvalidArgument naming file and tensor.
class OperandFile {
 public:
  /// A tensor that is not among `names` is refused, for nothing is ignored.
  OperandFile(const std::filesystem::path& path, std::string_view operation, const std::vector<std::string>& names);

  bool contains(const std::string& name) const { return file_.contains(name); }
  int dims_of(const std::string& name) const { return static_cast<int>(file_.tensors().at(name).shape.size()); }
  DType dtype_of(const std::string& name) const { return file_.tensors().at(name).dtype; }
  /// Dimensions but the first are between 1 and 65536.
  ConstTensorView need(const std::string& name, int dims) const;
  /// `meaning` says in words what the shape is: "[tokens, heads of q]".
  ConstTensorView need(const std::string& name, const Extents& shape, std::string_view meaning) const;
  void expect_dtype(const std::string& name, DType dtype, std::string_view reason) const;
  /// f64, f32, bf16 or f16.
  void expect_float(const std::string& name) const;
  /// In the accumulator type of `storage`, which it has or is converted to from `storage`.
  Tensor in_accumulator_type(const std::string& name, ConstTensorView tensor, DType storage) const;
  /// cu_seqlens; without it one document.
  std::vector<std::int64_t> documents(std::int64_t tokens) const;
  [[noreturn]] void refuse(std::string_view what) const;

 private:
  std::filesystem::path path_;
  SafetensorsFile file_;
};

}  // namespace periplus::launch
