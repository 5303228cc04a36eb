#pragma once

#include <string>

#include "parallel/plan/plan.h"

namespace periplus::plan {

/// Part 4 of verify() for a claim of linear attention: plays the plan with symbols in place of numbers. An element knows its unit,
/// head and pass; a state also the interval of units that it is the fold of. Shown is that every recurrence starts from the fold of
/// exactly the units that its document passed through before (Units), that each run and head of the outputs is computed once,
/// and, forward, that the saved states are complete. Tokens are read and written in place: plans that move them are refused.
/// Returns the first thing that is wrong, or nothing. The plan must have passed the checks of form, messages and races.
std::string check_states(const Plan& plan);

}  // namespace periplus::plan
