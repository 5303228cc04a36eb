#include "parallel/train/metrics.h"

#include <fstream>
#include <sstream>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "runtime/error.h"
#include "runtime/file.h"

namespace periplus::train {
namespace {

namespace fs = std::filesystem;
constexpr std::uint64_t kLargestMetrics = std::uint64_t{4} << 30;

bool belongs_before(const std::string& line, std::int64_t last_step) {
  const nlohmann::json object = nlohmann::json::parse(line, nullptr, false);
  if (!object.is_object()) return false;
  const auto step = object.find("step");
  return step != object.end() && step->is_number_integer() && step->get<std::int64_t>() <= last_step;
}

}  // namespace

std::string to_json_line(const StepMetrics& metrics) {
  const nlohmann::ordered_json object = {{"step", metrics.step},
                                         {"loss", metrics.loss},
                                         {"grad_norm", metrics.grad_norm},
                                         {"tokens", metrics.tokens},
                                         {"tokens_per_second", metrics.tokens_per_second},
                                         {"step_seconds", metrics.step_seconds},
                                         {"flops_per_second", metrics.flops_per_second},
                                         {"mfu", metrics.mfu},
                                         {"exposed_comm_seconds", metrics.exposed_comm_seconds},
                                         {"peak_memory_bytes", metrics.peak_memory_bytes},
                                         {"ranks", metrics.ranks},
                                         {"learning_rate", metrics.learning_rate},
                                         {"micro_batches", metrics.micro_batches},
                                         {"predicted_seconds", metrics.predicted_seconds}};
  return object.dump();
}

MetricsFile::MetricsFile(const fs::path& run_directory, std::int64_t last_step) : path_(run_directory / "metrics.jsonl") {
  std::string kept;
  if (last_step > 0 && fs::exists(path_)) {
    std::istringstream lines(read_file(path_, kLargestMetrics));
    for (std::string line; std::getline(lines, line);) {
      if (belongs_before(line, last_step)) kept += line + "\n";
    }
  }
  write_file_atomically(path_, kept);
}

void MetricsFile::append(const StepMetrics& metrics) {
  std::ofstream file(path_, std::ios::app);
  file << to_json_line(metrics) << '\n' << std::flush;
  if (!file) throw DeviceError(fmt::format("train: cannot append to {}; is the disk full?", path_.string()));
}

}  // namespace periplus::train
