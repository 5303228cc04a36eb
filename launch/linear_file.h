#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "launch/linear_run.h"
#include "launch/operand_file.h"

namespace periplus::launch {

/// The input file of `apply linear_attention` and `apply delta_rule`, checked.
class LinearFile {
 public:
  /// Errors: as OperandFile; also for a log_decay above 0 or beta that is missing.
  LinearFile(const std::filesystem::path& path, const std::string& operation);

  const GlobalLinear& tensors() const noexcept { return tensors_; }
  const std::vector<std::int64_t>& cu_seqlens() const noexcept { return cu_seqlens_; }
  int heads() const { return static_cast<int>(tensors_.q.size(1)); }
  int head_size() const { return static_cast<int>(tensors_.q.size(2)); }
  int value_size() const { return static_cast<int>(tensors_.v.size(2)); }
  DType dtype() const noexcept { return tensors_.q.dtype(); }
  Decay decay() const;

 private:
  void read_required();
  void read_decay();
  void read_rest(bool delta_rule);

  OperandFile file_;
  Tensor log_decay_, beta_;  // converted to the accumulator type
  GlobalLinear tensors_;
  std::vector<std::int64_t> cu_seqlens_;
};

}  // namespace periplus::launch
