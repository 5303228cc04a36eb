#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/linear_attention.h"

/// unit_scan of linear_attention.h as it is computed, on any device.
namespace periplus::kernels {

/// Of a state as the transition sees it: rows times columns numbers. Where all rows are multiplied alike, one row will do.
struct ScanShape {
  std::int64_t heads, rows, columns;
  Transition transition;
};

/// A fold: the elements still to be folded onto what the row `from` of the states holds, or onto zero.
struct ScanStep {
  static constexpr std::int64_t kZero = -1;
  std::int64_t target, from, begin, end;
};
/// In the order to take them: a step may go on from an earlier one.
std::vector<ScanStep> scan_steps(std::span<const UnitFold> folds, bool reverse, Update update);

}  // namespace periplus::kernels
