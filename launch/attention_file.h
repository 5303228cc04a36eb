#pragma once

#include <filesystem>
#include <vector>

#include "launch/attention_run.h"
#include "launch/operand_file.h"

namespace periplus::launch {

/// The input file of `apply attention`, checked: names, shapes, dtypes and document borders fit each other.
class AttentionFile {
 public:
  /// Errors: as OperandFile.
  explicit AttentionFile(const std::filesystem::path& path);

  const GlobalAttention& tensors() const noexcept { return tensors_; }
  const std::vector<std::int64_t>& cu_seqlens() const noexcept { return cu_seqlens_; }
  int q_heads() const { return static_cast<int>(tensors_.q.size(1)); }
  int kv_heads() const { return static_cast<int>(tensors_.k.size(1)); }
  int head_size() const { return static_cast<int>(tensors_.q.size(2)); }
  int value_size() const { return static_cast<int>(tensors_.v.size(2)); }
  DType dtype() const noexcept { return tensors_.q.dtype(); }

 private:
  void read_required();
  void read_optional();

  OperandFile file_;
  Tensor sink_;  // converted to the accumulator type
  GlobalAttention tensors_;
  std::vector<std::int64_t> cu_seqlens_;
};

}  // namespace periplus::launch
