#pragma once

#include <string>

#include "parallel/plan/plan.h"

namespace periplus::plan {

/// One line per step: id, queue, op, label, operands as name[rows x heads] with mode, bands, messages, what it waits for.
std::string to_text(const Program& program);
/// The same as a JSON object, complete enough to compare two programs field by field.
std::string to_json(const Program& program);

}  // namespace periplus::plan
