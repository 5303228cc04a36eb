#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json_fwd.hpp>

namespace periplus::launch::bench {

/// What a figure should reach. A figure without a goal is only reported.
struct Goal {
  double due = 0;
  std::optional<double> stretch;
  bool at_most = false;  ///< The ratio must not exceed the goal; otherwise it must reach it.
};

/// One line of a report.
struct Line {
  std::string id, name;
  std::string unit;  ///< Of value and yardstick.
  double value = 0, yardstick = 0, ratio = 0;
  double ratio_min = 0, ratio_max = 0;  ///< Over the samples kept.
  std::size_t kept = 0, taken = 0;      ///< 0 for figures that are not timed.
  bool noisy = false;
  std::optional<Goal> goal;
  std::vector<std::pair<std::string, double>> more;
  std::string note;
  std::string skipped;  ///< Why there is no figure.
  std::string wrong;    ///< What is wrong with the result, found before timing.
};

/// Whether the goal is met; nothing without a goal or a figure, or when noise leaves it open.
std::optional<bool> passed(const Line& line);
/// Whether a goal is not met, or a figure with a goal is too noisy to say, or the result is wrong.
bool misses(const Line& line);
/// Keys in the order id, case, value, yardstick, ratio, goal, stretch, pass, then the rest; numbers to five digits.
std::string to_json_line(const Line& line);
std::string text_header();
std::string to_text(const Line& line);

}  // namespace periplus::launch::bench
