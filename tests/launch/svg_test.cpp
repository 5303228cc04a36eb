#include "launch/svg.h"

#include <limits>

#include <gtest/gtest.h>

namespace periplus::launch {
namespace {

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t found = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

TEST(Svg, DrawsCurvesLevelsAndLegend) {
  const std::string svg = to_svg({.title = "a < b & c",
                                  .x_label = "step",
                                  .y_label = "nats",
                                  .curves = {{"loss", {{1, 5.5}, {2, 4}, {3, 3.25}}}},
                                  .levels = {{"entropy", 3.5}}});
  EXPECT_EQ(svg.rfind("<svg ", 0), 0u);
  EXPECT_EQ(count(svg, "<polyline"), 1u);
  EXPECT_NE(svg.find("a &lt; b &amp; c"), std::string::npos);
  EXPECT_NE(svg.find("entropy (3.500)"), std::string::npos);
  EXPECT_GE(count(svg, "<text"), 10u);
}

TEST(Svg, TicksEndAtTheFrame) {
  for (double high = 2; high < 12; high += 0.05) {
    const std::string svg = to_svg({.curves = {{"loss", {{1, 1.55}, {2, high}}}}});
    for (std::size_t at = svg.find(" y1=\""); at != std::string::npos; at = svg.find(" y1=\"", at + 1)) {
      ASSERT_GE(std::stod(svg.substr(at + 5)), 49.9) << "above the frame, with values up to " << high;
    }
  }
}

TEST(Svg, FiguresThatAreNotJoinedAreDots) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::string svg = to_svg({.curves = {{.name = "ratio", .points = {{1, 0.9}, {2, nan}, {3, 1.1}}, .joined = false}}});
  EXPECT_EQ(count(svg, "<circle"), 3u) << "two figures, and the legend's";
  EXPECT_EQ(count(svg, "<polyline"), 0u);
}

TEST(Svg, ACurveOfOnePointIsADot) { EXPECT_EQ(count(to_svg({.curves = {{"one", {{1, 2}}}}}), "<circle"), 1u); }

TEST(Svg, SurvivesOnePointEqualValuesAndNonFiniteOnes) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const Chart& chart :
       {Chart{}, Chart{.curves = {{"one", {{1, 2}}}}}, Chart{.curves = {{"bad", {{1, nan}, {2, 2}, {3, 2}}}}, .levels = {{"bad", nan}}}}) {
    const std::string svg = to_svg(chart);
    EXPECT_NE(svg.find("</svg>"), std::string::npos);
    EXPECT_EQ(svg.find("nan,"), std::string::npos);
    EXPECT_EQ(svg.find("\"nan"), std::string::npos);
    EXPECT_LT(svg.size(), 20000u);
  }
}

}  // namespace
}  // namespace periplus::launch
