#pragma once

#include <string>

#include "parallel/plan/plan.h"

namespace periplus::plan {

/// Part 1 of verify for a step of linear attention whose operands are of the right number, inside their slots and of the right types:
/// shapes, widths, runs and folds. Returns the first thing that is wrong, or nothing.
std::string unit_form_failure(const Program& program, const Step& step);

}  // namespace periplus::plan
