#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "parallel/train/trainer.h"

namespace periplus::train {

/// One line of metrics.jsonl, without the line end. Numbers read back bit for bit.
std::string to_json_line(const StepMetrics& metrics);

/// The lines of a run folder's metrics.jsonl. One that a crash cut short is left out, as training does; keys that an older version did
/// not write keep their defaults. Errors: InvalidArgument if the file is not there or holds what training does not write.
std::vector<StepMetrics> read_metrics(const std::filesystem::path& run_directory);

/// metrics.jsonl of a run folder. Used by rank 0 only.
class MetricsFile {
 public:
  /// Drops the lines of steps after `last_step` (and a line that a crash cut short), so that a continued run has no
  /// step twice.
  MetricsFile(const std::filesystem::path& run_directory, std::int64_t last_step);
  /// Appends a line; DeviceError if it cannot be written.
  void append(const StepMetrics& metrics);
  /// Writes the validation loss of a step into its line, if there is one.
  void amend(std::int64_t step, double validation_loss);

 private:
  std::filesystem::path path_;
};

}  // namespace periplus::train
