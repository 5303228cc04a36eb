#pragma once

#include <string>
#include <utility>
#include <vector>

namespace periplus::launch {

struct Curve {
  std::string name;
  std::vector<std::pair<double, double>> points;  ///< By rising x.
  bool joined = true;                             ///< By lines; else dots, of figures that have nothing between them.
};

/// A dashed horizontal line that a curve is compared with.
struct Level {
  std::string name;
  double value;
};

struct Chart {
  std::string title{}, x_label{}, y_label{};
  std::vector<Curve> curves{};
  std::vector<Level> levels{};
};

/// The chart as a stand-alone SVG picture with axes, ticks, grid and legend. Points that are not finite are left out.
std::string to_svg(const Chart& chart);

}  // namespace periplus::launch
