#include "parallel/train/metrics.h"

#include <fstream>
#include <limits>
#include <sstream>
#include <type_traits>

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

/// Reads the values of a line. `where` names it.
class LineReader {
 public:
  LineReader(const nlohmann::json& object, std::string where) : object_(object), where_(std::move(where)) {}

  template <class Number>
  void read(const char* key, Number& number, double least = std::numeric_limits<double>::lowest()) const {
    const auto value = object_.find(key);
    if (value == object_.end()) return;
    const bool fits = std::is_floating_point_v<Number> ? value->is_number() : value->is_number_integer();
    if (!fits || value->get<double>() < least || value->get<double>() > kLargest<Number>)
      throw InvalidArgument(fmt::format("{}: {} is {}, which training does not write", where_, key, value->dump().substr(0, 40)));
    number = value->get<Number>();
  }

 private:
  template <class Number>
  static constexpr auto kLargest = static_cast<double>(std::numeric_limits<Number>::max() / 2);  // 2: f64 rounds it

  const nlohmann::json& object_;
  std::string where_;
};

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

std::vector<StepMetrics> read_metrics(const fs::path& run_directory) {
  const fs::path path = run_directory / "metrics.jsonl";
  if (!fs::exists(path))
    throw InvalidArgument(fmt::format("metrics: there is no {}; name a folder that periplus train has written", path.string()));
  std::istringstream lines(read_file(path, kLargestMetrics));
  std::vector<StepMetrics> steps;
  int number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    const nlohmann::json object = nlohmann::json::parse(line, nullptr, false);
    if (!object.is_object() || !object.contains("step")) continue;
    const LineReader reader(object, fmt::format("{}:{}", path.string(), number));
    StepMetrics& step = steps.emplace_back();
    reader.read("step", step.step, 1);
    reader.read("loss", step.loss);
    reader.read("grad_norm", step.grad_norm, 0);
    reader.read("tokens", step.tokens, 0);
    reader.read("tokens_per_second", step.tokens_per_second, 0);
    reader.read("step_seconds", step.step_seconds, 0);
    reader.read("flops_per_second", step.flops_per_second, 0);
    reader.read("mfu", step.mfu, 0);
    reader.read("exposed_comm_seconds", step.exposed_comm_seconds);
    reader.read("peak_memory_bytes", step.peak_memory_bytes, 0);
    reader.read("ranks", step.ranks, 1);
    reader.read("learning_rate", step.learning_rate, 0);
    reader.read("micro_batches", step.micro_batches, 0);
    reader.read("predicted_seconds", step.predicted_seconds, 0);
  }
  return steps;
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
