#include "launch/progress.h"

#include <array>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "launch/svg.h"
#include "runtime/file.h"

namespace periplus::launch {
namespace {

std::string clock_text(double seconds) {
  const auto whole = static_cast<std::int64_t>(std::llround(seconds));
  if (whole >= 3600) return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
  return fmt::format("{}:{:02}", whole / 60, whole % 60);
}

/// Later lines win: a resumed run repeats the steps after its checkpoint.
std::map<std::int64_t, double> read_losses(const std::filesystem::path& file) {
  std::map<std::int64_t, double> losses;
  std::ifstream lines(file);
  for (std::string line; std::getline(lines, line);) {
    const auto record = nlohmann::json::parse(line, nullptr, false);
    if (!record.is_object() || !record.contains("step") || !record.contains("loss")) continue;
    if (record["step"].is_number_integer() && record["loss"].is_number()) losses[record["step"]] = record["loss"];
  }
  return losses;
}

}  // namespace

std::string bytes_text(double bytes) {
  constexpr std::array<const char*, 5> kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  std::size_t unit = 0;
  for (; bytes >= 1024 && unit + 1 < kUnits.size(); ++unit) bytes /= 1024;
  return fmt::format("{:.{}f} {}", bytes, unit == 0 ? 0 : 1, kUnits[unit]);
}

std::string progress_header() {
  return fmt::format("{:>6} {:>9} {:>10} {:>10} {:>9} {:>6} {:>13} {:>11} {:>8}", "step", "loss", "grad_norm", "tokens/s", "GFLOP/s", "mfu",
                     "exposed comm", "memory", "left");
}

std::string progress_line(const train::StepMetrics& metrics, std::int64_t steps) {
  const double exposed = metrics.step_seconds > 0 ? metrics.exposed_comm_seconds / metrics.step_seconds : 0;
  return fmt::format("{:>6} {:>9.4f} {:>10.3f} {:>10.0f} {:>9.1f} {:>5.1f}% {:>12.1f}% {:>11} {:>8}", metrics.step, metrics.loss,
                     metrics.grad_norm, metrics.tokens_per_second, metrics.flops_per_second / 1e9, 100 * metrics.mfu, 100 * exposed,
                     bytes_text(static_cast<double>(metrics.peak_memory_bytes)),
                     clock_text(static_cast<double>(steps - metrics.step) * metrics.step_seconds));
}

void write_loss_chart(const std::string& directory, const train::TrainResult& result) {
  const std::filesystem::path folder(directory);
  Curve curve{"loss", {}};
  for (const auto& [step, loss] : read_losses(folder / "metrics.jsonl")) curve.points.emplace_back(static_cast<double>(step), loss);
  if (curve.points.empty()) return;
  const Chart chart{.title = "Training loss",
                    .x_label = "step",
                    .y_label = "nats per byte",
                    .curves = {curve},
                    .levels = {{"unigram entropy", result.unigram_entropy}, {"order-1 entropy", result.order1_entropy}}};
  write_file_atomically(folder / "loss.svg", to_svg(chart));
}

}  // namespace periplus::launch
