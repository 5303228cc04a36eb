#include "parallel/train/metrics.h"

#include <fstream>
#include <limits>
#include <sstream>
#include <type_traits>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "runtime/error.h"
#include "runtime/file.h"
#include "runtime/file_descriptor.h"

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

constexpr const char* kValidationLoss = "validation_loss";  // of the steps that have one
constexpr double kAny = std::numeric_limits<double>::lowest();

/// value(key, number, least that training writes) for all values of a line.
template <class Metrics, class Value>
void for_each_value(Metrics& metrics, const Value& value) {
  value("step", metrics.step, 1);
  value("loss", metrics.loss, kAny);
  value("grad_norm", metrics.grad_norm, 0);
  value("tokens", metrics.tokens, 0);
  value("tokens_per_second", metrics.tokens_per_second, 0);
  value("step_seconds", metrics.step_seconds, 0);
  value("flops_per_second", metrics.flops_per_second, 0);
  value("mfu", metrics.mfu, 0);
  value("exposed_comm_seconds", metrics.exposed_comm_seconds, kAny);
  value("peak_memory_bytes", metrics.peak_memory_bytes, 0);
  value("ranks", metrics.ranks, 1);
  value("learning_rate", metrics.learning_rate, 0);
  value("micro_batches", metrics.micro_batches, 0);
  value("predicted_seconds", metrics.predicted_seconds, 0);
}

/// number := value. False if training cannot have written it.
template <class Number>
bool read_number(const nlohmann::json& value, double least, Number& number) {
  constexpr auto kLargest = static_cast<double>(std::numeric_limits<Number>::max() / 2);  // 2: f64 rounds it
  const bool fits = std::is_floating_point_v<Number> ? value.is_number() : value.is_number_integer();
  if (!fits || value.get<double>() < least || value.get<double>() > kLargest) return false;
  number = value.get<Number>();
  return true;
}

}  // namespace

std::string to_json_line(const StepMetrics& metrics) {
  nlohmann::ordered_json object;
  for_each_value(metrics, [&](const char* key, auto number, double) { object[key] = number; });
  if (metrics.validation_loss) object[kValidationLoss] = *metrics.validation_loss;
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
    StepMetrics& metrics = steps.emplace_back();
    const auto read = [&](const char* key, auto& to, double least) {
      const auto value = object.find(key);
      if (value == object.end() || read_number(*value, least, to)) return;
      throw InvalidArgument(
          fmt::format("{}:{}: {} is {}, which training does not write", path.string(), number, key, value->dump().substr(0, 40)));
    };
    for_each_value(metrics, read);
    if (object.contains(kValidationLoss)) read(kValidationLoss, metrics.validation_loss.emplace(), kAny);
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
  if (!file) throw_system_error("append", path_);
}

void MetricsFile::amend(std::int64_t step, double validation_loss) {
  std::string lines;
  for (StepMetrics& metrics : read_metrics(path_.parent_path())) {
    if (metrics.step == step) metrics.validation_loss = validation_loss;
    lines += to_json_line(metrics) + "\n";
  }
  write_file_atomically(path_, lines);
}

}  // namespace periplus::train
