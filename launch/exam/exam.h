#pragma once

#include <functional>
#include <string>
#include <vector>

#include "launch/svg.h"

/// The exam of the simulator: what others measured, what it says of the same setups, and whether that is close enough.
namespace periplus::launch::exam {

/// One published number and what the simulator says.
struct Figure {
  std::string name;
  double published = 0, simulated = 0;
};

/// How far a figure may be off.
struct Tolerance {
  enum Kind { relative, absolute, at_most } kind = relative;
  double value = 0;  ///< relative: share of the published figure; absolute: in its unit; at_most: nothing above it passes.
};

struct Result {
  std::string setup = {};
  std::string unit = {};
  Tolerance tolerance = {};
  std::vector<Figure> figures = {};
  /// Beyond the figures: an order, what runs out of memory. Empty, or what is wrong.
  std::string wrong = {};
  bool fitted = false;                      ///< Numbers of the machine or model were fitted to this row: it does not count.
  std::vector<std::string> constants = {};  ///< Files whose numbers it rests on, and the fitted ones by key.
  std::string note = {};                    ///< What it assumes beyond the published setup; why it misses, where that is known.
  std::string not_simulated = {};           ///< Why there are no figures.
};

struct Row {
  const char* id;
  std::function<Result()> run;
};

/// S1 to S32. Cost: all of them some 4 s of a core.
const std::vector<Row>& rows();

bool inside(const Figure& figure, const Tolerance& tolerance);
bool passed(const Result& result);
/// "10 %", "4 points", "at most 2.3"
std::string to_text(const Tolerance& tolerance, const std::string& unit);

/// Seconds of FlexSP's planner, a static degree and the best degree of each batch, published and simulated; and iterations of
/// LASP-2 by devices: the pictures of the report.
Chart flexsp_chart();
Chart lasp2_chart();

std::vector<Row> planner_rows();    // S1-S6
std::vector<Row> attention_rows();  // S7-S13, S16, S29, S32
std::vector<Row> training_rows();   // S14, S15, S17-S22, S28, S30, S31
std::vector<Row> linear_rows();     // S23-S27

}  // namespace periplus::launch::exam
