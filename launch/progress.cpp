#include "launch/progress.h"

#include <cmath>
#include <filesystem>

#include <fmt/format.h>

#include "launch/bytes_text.h"
#include "launch/svg.h"
#include "parallel/train/metrics.h"
#include "runtime/file.h"

namespace periplus::launch {
namespace {

std::string clock_text(double seconds) {
  const auto whole = static_cast<std::int64_t>(std::llround(seconds));
  if (whole >= 3600) return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
  return fmt::format("{}:{:02}", whole / 60, whole % 60);
}

}  // namespace

std::vector<Curve> loss_curves(const std::vector<train::StepMetrics>& steps, const std::string& name, const std::string& validation_name) {
  Curve losses{.name = name, .points = {}}, validation{.name = validation_name, .points = {}};
  for (const train::StepMetrics& metrics : steps) {
    const auto step = static_cast<double>(metrics.step);
    losses.points.emplace_back(step, metrics.loss);
    if (metrics.validation_loss) validation.points.emplace_back(step, *metrics.validation_loss);
  }
  validation.joined = validation.points.size() > 1;
  std::vector<Curve> curves = {std::move(losses)};
  if (!validation.points.empty()) curves.push_back(std::move(validation));
  return curves;
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
                     clock_text(static_cast<double>(steps - metrics.step) * metrics.step_seconds)) +
         (metrics.validation_loss ? fmt::format("  validation loss {:.4f}", *metrics.validation_loss) : "");
}

void write_loss_chart(const std::string& directory, const train::TrainResult& result) {
  const std::vector<train::StepMetrics> steps = train::read_metrics(directory);
  if (steps.empty()) return;
  Chart chart{.title = "Loss",
              .x_label = "step",
              .y_label = "nats per token",
              .curves = loss_curves(steps, "loss", "validation loss"),
              .levels = {{"unigram entropy", result.unigram_entropy}}};
  if (result.order1_entropy) chart.levels.push_back({"order-1 entropy", *result.order1_entropy});
  write_file_atomically(std::filesystem::path(directory) / "loss.svg", to_svg(chart));
}

}  // namespace periplus::launch
