#include "launch/svg.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include <fmt/format.h>

namespace periplus::launch {
namespace {

constexpr double kWidth = 860, kHeight = 480, kLeft = 84, kRight = 20, kTop = 50, kBottom = 55;
constexpr std::array<const char*, 8> kColors = {"#1f6feb", "#d1495b", "#2a9d5c", "#b7791f", "#7d4cc2", "#555555", "#12a5b8", "#e667b4"};

struct Axis {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  double from = 0, to = 0;  ///< Pixels.
  double tick = 1;

  void include(double value) {
    if (!std::isfinite(value)) return;
    low = std::min(low, value);
    high = std::max(high, value);
  }
  /// Ticks are 1, 2 or 5 times a power of ten apart, about six of them.
  void widen_to_ticks() {
    if (!(low <= high)) low = 0, high = 1;
    if (low == high) low -= 0.5, high += 0.5;
    const double rough = (high - low) / 6, power = std::pow(10, std::floor(std::log10(rough)));
    const double scaled = rough / power;
    tick = power * (scaled < 1.5 ? 1 : scaled < 3.5 ? 2 : scaled < 7.5 ? 5 : 10);
    low = std::floor(low / tick) * tick;
    high = std::ceil(high / tick) * tick;
  }
  double pixel(double value) const { return from + (value - low) / (high - low) * (to - from); }
};

std::string escaped(const std::string& text) {
  std::string result;
  for (const char c : text) {
    if (c == '<') {
      result += "&lt;";
    } else if (c == '&') {
      result += "&amp;";
    } else {
      result += c;
    }
  }
  return result;
}

std::string text_at(double x, double y, const char* anchor, const std::string& text, const std::string& more = "") {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\"{}>{}</text>\n", x, y, anchor, more, escaped(text));
}

std::string grid(const Axis& x, const Axis& y) {
  std::string svg = "<g stroke=\"#dddddd\">\n";
  std::string labels;
  for (double value = x.low; value <= x.high + x.tick / 2; value += x.tick) {
    svg += fmt::format("<line x1=\"{0:.1f}\" y1=\"{1:.1f}\" x2=\"{0:.1f}\" y2=\"{2:.1f}\"/>\n", x.pixel(value), y.from, y.to);
    labels += text_at(x.pixel(value), y.from + 18, "middle", fmt::format("{:.6g}", value));
  }
  for (double value = y.low; value <= y.high + y.tick / 2; value += y.tick) {
    svg += fmt::format("<line x1=\"{1:.1f}\" y1=\"{0:.1f}\" x2=\"{2:.1f}\" y2=\"{0:.1f}\"/>\n", y.pixel(value), x.from, x.to);
    labels += text_at(x.from - 8, y.pixel(value) + 4, "end", fmt::format("{:.6g}", value));
  }
  return svg + "</g>\n" + labels;
}

std::string dots(const Curve& curve, const Axis& x, const Axis& y, const char* color) {
  std::string svg;
  for (const auto& [px, py] : curve.points) {
    if (!std::isfinite(px) || !std::isfinite(py)) continue;
    svg += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.5\" fill=\"{}\"/>\n", x.pixel(px), y.pixel(py), color);
  }
  return svg;
}

std::string polyline(const Curve& curve, const Axis& x, const Axis& y, const char* color) {
  std::string points;
  std::size_t count = 0;
  for (const auto& [px, py] : curve.points) {
    if (std::isfinite(px) && std::isfinite(py)) ++count, points += fmt::format("{:.1f},{:.1f} ", x.pixel(px), y.pixel(py));
  }
  if (!curve.joined || count == 1) return dots(curve, x, y, color);  // a line through one point shows nothing
  return fmt::format("<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"2\" points=\"{}\"/>\n", color, points);
}

enum class Mark { line, dashes, dot };

std::string legend_row(std::size_t row, const std::string& name, const char* color, Mark mark) {
  const double y = kTop + 16 + 18 * static_cast<double>(row), x = kWidth - kRight - 260;
  const std::string label = text_at(x + 36, y + 4, "start", name);
  if (mark == Mark::dot) return fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.5\" fill=\"{}\"/>\n", x + 14, y, color) + label;
  return fmt::format("<line x1=\"{0:.1f}\" y1=\"{1:.1f}\" x2=\"{2:.1f}\" y2=\"{1:.1f}\" stroke=\"{3}\" stroke-width=\"2\"{4}/>\n", x, y,
                     x + 28, color, mark == Mark::dashes ? " stroke-dasharray=\"6 4\"" : "") +
         label;
}

}  // namespace

std::string to_svg(const Chart& chart) {
  Axis x{.from = kLeft, .to = kWidth - kRight}, y{.from = kHeight - kBottom, .to = kTop};
  for (const Curve& curve : chart.curves) {
    for (const auto& [px, py] : curve.points) x.include(px), y.include(py);
  }
  for (const Level& level : chart.levels) y.include(level.value);
  x.widen_to_ticks();
  y.widen_to_ticks();
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" font-family=\"sans-serif\" "
      "font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
      kWidth, kHeight);
  svg += grid(x, y);
  svg += text_at(24, 28, "start", chart.title, " font-size=\"16\" font-weight=\"bold\"");
  svg += text_at((x.from + x.to) / 2, kHeight - 14, "middle", chart.x_label);
  svg += text_at(0, 0, "middle", chart.y_label, fmt::format(" transform=\"translate(16 {:.1f}) rotate(-90)\"", (y.from + y.to) / 2));
  std::size_t row = 0;
  for (const Curve& curve : chart.curves) {
    const char* color = kColors[row % kColors.size()];
    svg += polyline(curve, x, y, color) + legend_row(row++, curve.name, color, curve.joined ? Mark::line : Mark::dot);
  }
  for (const Level& level : chart.levels) {
    if (!std::isfinite(level.value)) continue;
    const char* color = kColors[row % kColors.size()];
    svg += fmt::format("<line x1=\"{1:.1f}\" y1=\"{0:.1f}\" x2=\"{2:.1f}\" y2=\"{0:.1f}\" stroke=\"{3}\" stroke-dasharray=\"6 4\"/>\n",
                       y.pixel(level.value), x.from, x.to, color);
    svg += legend_row(row++, fmt::format("{} ({:.3f})", level.name, level.value), color, Mark::dashes);
  }
  return svg + "</svg>\n";
}

}  // namespace periplus::launch
