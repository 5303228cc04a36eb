#pragma once

#include <string>

#include "parallel/plan/plan.h"

namespace periplus::plan {

/// Part 4 of verify(): plays the plan with symbols in place of numbers. Returns the first thing that is wrong, or nothing.
/// The plan must have passed the checks of form, messages and races: then every order of steps gives the same result, and
/// playing phase by phase is one of them.
std::string check_provenance(const Plan& plan);

}  // namespace periplus::plan
