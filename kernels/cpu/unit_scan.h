#pragma once

#include <span>

#include "kernels/linear_attention_problem.h"
#include "kernels/scan_steps.h"

namespace periplus::kernels::cpu {

/// unit_scan of linear_attention.h with checked arguments. Instantiated for A = double, float.
template <class A>
void unit_scan(const ScanShape& shape, Strided<const A> elements, std::span<const UnitFold> folds, bool reverse, Strided<A> states,
               Update update, StreamView stream);

}  // namespace periplus::kernels::cpu
