#include "launch/exam/report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <set>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "launch/bench/figure_lines.h"
#include "launch/bench/statistics.h"
#include "launch/commands.h"
#include "launch/exam/exam.h"
#include "launch/ranks.h"
#include "runtime/error.h"
#include "runtime/file.h"

namespace periplus::launch::exam {
namespace {

using Json = nlohmann::ordered_json;

struct Summary {
  int counted = 0, passed = 0, fitted = 0, fitted_passed = 0;
  std::vector<double> errors;  ///< Of the rows that count, relative.
  Curve curve{.name = "simulated / published", .points = {}, .joined = false};

  void add(const Row& row, const Result& result) {
    if (result.fitted) {
      ++fitted, fitted_passed += passed_one(result);
    } else if (result.not_simulated.empty()) {
      ++counted, passed += passed_one(result);
    }
    if (result.tolerance.kind == Tolerance::at_most) return;
    for (const Figure& figure : result.figures) {
      const double ratio = figure.simulated / figure.published;
      if (!result.fitted) errors.push_back(std::abs(ratio - 1));
      curve.points.emplace_back(std::atoi(row.id + 1), std::min(ratio, 3.0));
    }
  }

 private:
  static int passed_one(const Result& result) { return exam::passed(result) ? 1 : 0; }
};

Json to_json(const Row& row, const Result& result) {
  Json published = Json::array(), simulated = Json::array(), ratios = Json::array(), names = Json::array();
  for (const Figure& figure : result.figures) {
    names.push_back(figure.name), published.push_back(figure.published), simulated.push_back(figure.simulated);
    ratios.push_back(figure.simulated / figure.published);
  }
  Json json{{"id", row.id},
            {"setup", result.setup},
            {"unit", result.unit},
            {"figures", names},
            {"published", published},
            {"simulated", simulated},
            {"ratio", ratios},
            {"tolerance", to_text(result.tolerance, result.unit)},
            {"pass", passed(result)},
            {"fitted", result.fitted},
            {"constants", result.constants}};
  if (!result.wrong.empty()) json["wrong"] = result.wrong;
  if (!result.not_simulated.empty()) json["not_simulated"] = result.not_simulated;
  if (!result.note.empty()) json["note"] = result.note;
  return json;
}

void show(const Row& row, const Result& result) {
  const std::string verdict = !result.not_simulated.empty() ? "not simulated" : passed(result) ? "pass" : "MISS";
  bench::print_line(fmt::format("{:<4}{:<14} {} (tolerance {}){}", row.id, verdict, result.setup, to_text(result.tolerance, result.unit),
                                result.fitted ? ", fitted: does not count" : ""));
  for (const Figure& figure : result.figures) {
    bench::print_line(fmt::format("        {:<24} published {:>10.4g} simulated {:>10.4g} {:<8} ratio {:>6.3f}{}", figure.name,
                                  figure.published, figure.simulated, result.unit, figure.simulated / figure.published,
                                  inside(figure, result.tolerance) ? "" : "  <-"));
  }
  for (const std::string& text : {result.wrong, result.not_simulated, result.note})
    if (!text.empty()) bench::print_line("        " + text);
}

void write_pictures(const std::string& folder, const Summary& summary, const std::vector<Row>& chosen) {
  create_folders(folder);
  Chart chart{.title = "The exam: simulated over published, every figure (above 3 as 3)", .x_label = "row", .y_label = "ratio"};
  chart.curves = {summary.curve};
  chart.levels = {{"as published", 1}};
  write_file_atomically(std::filesystem::path(folder) / "exam.svg", to_svg(chart));
  for (const Row& row : chosen) {
    if (row.id == std::string("S1")) write_file_atomically(std::filesystem::path(folder) / "flexsp.svg", to_svg(flexsp_chart()));
    if (row.id == std::string("S23")) write_file_atomically(std::filesystem::path(folder) / "lasp2.svg", to_svg(lasp2_chart()));
  }
}

}  // namespace

int run_exam(const OptionTable& table, const std::string& only, const std::string& picture) {
  std::vector<Row> chosen = rows();
  if (only != "all") bench::keep_chosen(chosen, only, "--reproduce");
  Summary summary;
  for (const Row& row : chosen) {
    bench::show_progress(fmt::format("{} of {}", row.id, chosen.size()));
    const Result result = row.run();
    summary.add(row, result);
    if (table.json()) {
      bench::print_line(to_json(row, result).dump());
    } else {
      show(row, result);
    }
  }
  const std::optional<double> median_error = summary.errors.empty() ? std::nullopt : std::optional(bench::median(summary.errors));
  if (table.json()) {
    bench::print_line(Json{{"id", "all"},
                           {"rows", summary.counted},
                           {"passed", summary.passed},
                           {"fitted_rows", summary.fitted},
                           {"fitted_passed", summary.fitted_passed},
                           {"median_error", or_null(median_error)}}
                          .dump());
  } else {
    bench::print_line(
        fmt::format("{} of {} rows inside their tolerance, and {} of {} that numbers were fitted to{}", summary.passed, summary.counted,
                    summary.fitted_passed, summary.fitted,
                    median_error ? fmt::format("; median error of {} figures {:.1f} %", summary.errors.size(), 100 * *median_error) : ""));
  }
  if (!picture.empty()) write_pictures(picture, summary, chosen);
  return kOk;
}

}  // namespace periplus::launch::exam
