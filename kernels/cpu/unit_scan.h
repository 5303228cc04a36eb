#pragma once

#include <span>

#include "kernels/linear_attention_problem.h"

namespace periplus::kernels::cpu {

/// Of a state as the transition sees it: rows times columns numbers. Where all rows are multiplied alike, one row will do.
struct ScanShape {
  std::int64_t heads, rows, columns;
  Transition transition;
};

/// unit_scan of linear_attention.h with checked arguments. Instantiated for A = double, float.
template <class A>
void unit_scan(const ScanShape& shape, Strided<const A> elements, std::span<const UnitFold> folds, bool reverse, Strided<A> states,
               Update update, StreamView stream);

}  // namespace periplus::kernels::cpu
