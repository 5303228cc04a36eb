#include "launch/bench/report.h"

#include <cmath>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace periplus::launch::bench {
namespace {

using Json = nlohmann::ordered_json;

Json rounded(double value) {
  if (!std::isfinite(value)) return nullptr;
  return std::stod(fmt::format("{:.5g}", value));
}

std::string verdict(const Line& line) {
  if (!line.wrong.empty()) return "WRONG";
  if (!line.skipped.empty()) return "skipped";
  const std::optional<bool> pass = passed(line);
  if (line.noisy) return "noisy";
  if (!pass) return "-";
  if (!*pass) return "missed";
  const std::optional<double>& stretch = line.goal->stretch;
  const bool beyond = stretch && (line.goal->at_most ? line.ratio <= *stretch : line.ratio >= *stretch);
  return beyond ? "stretch" : "met";
}

}  // namespace

std::optional<bool> passed(const Line& line) {
  if (!line.wrong.empty()) return false;
  if (!line.goal || !line.skipped.empty() || line.noisy) return std::nullopt;
  return line.goal->at_most ? line.ratio <= line.goal->due : line.ratio >= line.goal->due;
}

bool misses(const Line& line) { return passed(line) == false || (line.noisy && line.goal && line.skipped.empty()); }

std::string to_json_line(const Line& line) {
  const bool measured = line.skipped.empty() && line.wrong.empty();
  const auto number = [&](double value) { return measured ? rounded(value) : Json(nullptr); };
  const std::optional<bool> pass = passed(line);
  Json json = {{"id", line.id},
               {"case", line.name},
               {"value", number(line.value)},
               {"yardstick", number(line.yardstick)},
               {"ratio", number(line.ratio)},
               {"goal", line.goal ? Json(line.goal->due) : Json(nullptr)},
               {"stretch", line.goal && line.goal->stretch ? Json(*line.goal->stretch) : Json(nullptr)},
               {"pass", pass ? Json(*pass) : Json(nullptr)},
               {"better", line.goal && line.goal->at_most ? "lower" : "higher"},
               {"unit", line.unit}};
  if (line.taken > 0) {
    json["ratio_min"] = number(line.ratio_min);
    json["ratio_max"] = number(line.ratio_max);
    json["samples_kept"] = line.kept;
    json["samples_taken"] = line.taken;
    json["noisy"] = line.noisy;
  }
  for (const auto& [name, value] : line.more) json[name] = rounded(value);
  if (!line.note.empty()) json["note"] = line.note;
  if (!line.skipped.empty()) json["skipped"] = line.skipped;
  if (!line.wrong.empty()) json["error"] = line.wrong;
  return json.dump();
}

std::string text_header() {
  return fmt::format("{:<8} {:<54} {:>9} {:>9} {:<8} {:>7} {:>15} {:>7} {:>8} {:>7} {}", "id", "case", "value", "yardstick", "unit",
                     "ratio", "min..max", "goal", "stretch", "samples", "result");
}

std::string to_text(const Line& line) {
  if (!line.skipped.empty() || !line.wrong.empty()) {
    return fmt::format("{:<8} {:<54} {}: {}", line.id, line.name, verdict(line), line.wrong.empty() ? line.skipped : line.wrong);
  }
  const auto goal = [&](const std::optional<double>& value) {
    return value ? fmt::format("{}{:.4g}", line.goal->at_most ? "<=" : ">=", *value) : std::string();
  };
  std::string text = fmt::format("{:<8} {:<54} {:>9.4g} {:>9.4g} {:<8} {:>7.3f} {:>15} {:>7} {:>8} {:>7} {}", line.id, line.name,
                                 line.value, line.yardstick, line.unit, line.ratio,
                                 line.taken > 0 ? fmt::format("{:.3f}..{:.3f}", line.ratio_min, line.ratio_max) : "",
                                 line.goal ? goal(line.goal->due) : "", line.goal ? goal(line.goal->stretch) : "",
                                 line.taken > 0 ? fmt::format("{}/{}", line.kept, line.taken) : "", verdict(line));
  if (line.noisy) text += " (fewer than 3 calm samples)";
  for (const auto& [name, value] : line.more) text += fmt::format("; {} {:.3g}", name, value);
  return line.note.empty() ? text : text + "; " + line.note;
}

}  // namespace periplus::launch::bench
