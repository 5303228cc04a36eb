#include "launch/exam/exam.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include <fmt/format.h>

namespace periplus::launch::exam {

const std::vector<Row>& rows() {
  static const std::vector<Row> all = [] {
    std::vector<Row> rows;
    for (const std::vector<Row>& part : {planner_rows(), attention_rows(), training_rows(), linear_rows()})
      rows.insert(rows.end(), part.begin(), part.end());
    std::ranges::sort(rows, {}, [](const Row& row) { return std::atoi(row.id + 1); });
    return rows;
  }();
  return all;
}

bool inside(const Figure& figure, const Tolerance& tolerance) {
  const double off = std::abs(figure.simulated - figure.published);
  // A rounding error on the border is inside.
  constexpr double kSlack = 1 + 1e-9;
  switch (tolerance.kind) {
    case Tolerance::relative:
      return off <= tolerance.value * std::abs(figure.published) * kSlack;
    case Tolerance::absolute:
      return off <= tolerance.value * kSlack;
    case Tolerance::at_most:
      return figure.simulated <= tolerance.value * kSlack;
  }
  return false;
}

bool passed(const Result& result) {
  return result.not_simulated.empty() && result.wrong.empty() && !result.figures.empty() &&
         std::ranges::all_of(result.figures, [&](const Figure& figure) { return inside(figure, result.tolerance); });
}

std::string to_text(const Tolerance& tolerance, const std::string& unit) {
  switch (tolerance.kind) {
    case Tolerance::relative:
      return fmt::format("{:g} %", 100 * tolerance.value);
    case Tolerance::absolute:
      return fmt::format("{:g} {}", tolerance.value, unit == "%" ? "points" : unit);
    case Tolerance::at_most:
      return fmt::format("at most {:g} {}", tolerance.value, unit);
  }
  return {};
}

}  // namespace periplus::launch::exam
