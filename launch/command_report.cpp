// periplus report: training runs side by side, as a table and a picture of their losses.
#include <algorithm>
#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "launch/bench/statistics.h"
#include "launch/bytes_text.h"
#include "launch/commands.h"
#include "launch/paths.h"
#include "launch/progress.h"
#include "launch/ranks.h"
#include "launch/svg.h"
#include "parallel/train/metrics.h"
#include "runtime/error.h"
#include "runtime/file.h"

namespace periplus::launch {
namespace {

struct Run {
  std::string name;
  std::vector<train::StepMetrics> steps;
  double last_loss = 0;  ///< Mean of the last ten.
  std::optional<double> validation_loss = {};
  double tokens_per_second = 0;  ///< Median of all steps but the first.
  std::int64_t peak_bytes = 0;
  double exposed_share = 0;
};

Run read_run(const std::string& folder) {
  constexpr std::size_t kLast = 10;
  Run run{.name = (std::filesystem::path(folder) / "").lexically_normal().parent_path().string(), .steps = train::read_metrics(folder)};
  const std::vector<train::StepMetrics>& steps = run.steps;
  if (steps.empty()) throw InvalidArgument(fmt::format("{} has no step yet", folder));
  std::vector<double> rates;
  double seconds = 0, exposed = 0;
  for (std::size_t i = 0; i < steps.size(); ++i) {
    const train::StepMetrics& step = steps[i];
    if (i + kLast >= steps.size()) run.last_loss += step.loss / static_cast<double>(std::min(kLast, steps.size()));
    if (step.validation_loss) run.validation_loss = step.validation_loss;
    run.peak_bytes = std::max(run.peak_bytes, step.peak_memory_bytes);
    if (i == 0 && steps.size() > 1) continue;
    rates.push_back(step.tokens_per_second);
    seconds += step.step_seconds, exposed += step.exposed_comm_seconds;
  }
  run.tokens_per_second = bench::median(std::move(rates));
  run.exposed_share = seconds > 0 ? exposed / seconds : 0;
  return run;
}

/// The last folders of their paths, if that tells them apart.
void shorten_names(std::vector<Run>& runs) {
  std::set<std::string> names;
  for (const Run& run : runs) names.insert(std::filesystem::path(run.name).filename().string());
  if (names.size() < runs.size()) return;
  for (Run& run : runs) run.name = std::filesystem::path(run.name).filename().string();
}

void write_chart(const std::vector<Run>& runs, const std::string& output) {
  Chart chart{.title = "Loss", .x_label = "step", .y_label = "nats per token"};
  for (const Run& run : runs) {
    for (Curve& curve : loss_curves(run.steps, run.name, run.name + ", validation")) chart.curves.push_back(std::move(curve));
  }
  write_file_atomically(output, to_svg(chart));
}

}  // namespace

int report_command(Arguments arguments) {
  OptionTable table("report", "training runs side by side: steps, losses, speed, memory, and a picture of the losses",
                    "periplus report --runs runs/a runs/b --output losses.svg");
  std::vector<std::string> folders;
  std::string output;
  table.add({.flag = "runs", .target = &folders, .value = "FOLDER ...", .help = "Folders of runs (run.directory)."});
  table.add({.flag = "output", .target = &output, .value = "FILE", .help = "Where the picture goes, SVG; empty: none."});
  table.parse(arguments);
  if (answered(table)) return kOk;
  if (folders.empty()) throw InvalidArgument("--runs FOLDER ... is missing");
  if (!output.empty()) check_output_file("output", output);
  if (!output.empty() && !output.ends_with(".svg"))
    throw InvalidArgument(fmt::format("--output: '{}' must end with .svg, as the picture is one", output));
  std::vector<Run> runs;
  for (const std::string& folder : folders) runs.push_back(read_run(folder));
  shorten_names(runs);
  if (!output.empty()) write_chart(runs, output);
  std::size_t width = 3;
  for (const Run& run : runs) width = std::max(width, run.name.size());
  say(table, fmt::format("{:<{}} {:>6} {:>10} {:>10} {:>10} {:>10} {:>9}", "run", width, "steps", "last loss", "validation", "tokens/s",
                         "memory", "exposed"));
  nlohmann::json results = nlohmann::json::array();
  for (const Run& run : runs) {
    say(table, fmt::format("{:<{}} {:>6} {:>10.4f} {:>10} {:>10.0f} {:>10} {:>8.1f}%", run.name, width, run.steps.size(), run.last_loss,
                           run.validation_loss ? fmt::format("{:.4f}", *run.validation_loss) : "-", run.tokens_per_second,
                           bytes_text(static_cast<double>(run.peak_bytes)), 100 * run.exposed_share));
    results.push_back({{"run", run.name},
                       {"steps", run.steps.size()},
                       {"mean_last_losses", run.last_loss},
                       {"validation_loss", or_null(run.validation_loss)},
                       {"tokens_per_second", run.tokens_per_second},
                       {"peak_memory_bytes", run.peak_bytes},
                       {"exposed_share", run.exposed_share}});
  }
  say(table,
      "last loss: mean of the last ten steps; validation: its last loss; tokens/s: median of all steps but the first; exposed: of their "
      "time, waiting for messages");
  print_result(table, {{"runs", results}});
  return kOk;
}

}  // namespace periplus::launch
