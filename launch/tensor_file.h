#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "launch/attention_run.h"
#include "runtime/safetensors.h"

namespace periplus::launch {

/// The input file of `apply attention`, checked: names, shapes, dtypes and document borders fit each other.
class AttentionFile {
 public:
  /// Errors: InvalidArgument naming file and tensor; a tensor no operand is made of is refused, for nothing is ignored.
  explicit AttentionFile(const std::filesystem::path& path);

  const GlobalAttention& tensors() const noexcept { return tensors_; }
  const std::vector<std::int64_t>& cu_seqlens() const noexcept { return cu_seqlens_; }
  int q_heads() const { return static_cast<int>(tensors_.q.size(1)); }
  int kv_heads() const { return static_cast<int>(tensors_.k.size(1)); }
  int head_size() const { return static_cast<int>(tensors_.q.size(2)); }
  int value_size() const { return static_cast<int>(tensors_.v.size(2)); }
  DType dtype() const noexcept { return tensors_.q.dtype(); }
  bool backward() const noexcept { return tensors_.dout.dims() > 0; }

 private:
  ConstTensorView need(const std::string& name, int dims) const;
  void expect_shape(const std::string& name, const Extents& shape, const std::string& meaning) const;
  void expect_dtype(const std::string& name, DType dtype, const std::string& reason) const;
  void read_required();
  void read_optional();
  void read_documents();

  std::filesystem::path path_;
  SafetensorsFile file_;
  Tensor sink_;  // converted to the accumulator type
  GlobalAttention tensors_;
  std::vector<std::int64_t> cu_seqlens_;
};

}  // namespace periplus::launch
