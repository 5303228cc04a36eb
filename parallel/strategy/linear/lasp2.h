#pragma once

#include "parallel/strategy/linear/strategy.h"

namespace periplus::strategy::linear {

/// One all-gather of the elements of all units; every rank folds those before its own (algorithms.md 5.2, 5.3).
/// Bytes    Each rank sends its units' elements to every other: (P-1) H (D E + T) accumulator numbers a unit and pass; backward without T
/// if transitions are kept. Memory   The elements of all units; kept transitions are the caller's, T numbers a unit of any rank and head.
/// Source   Sun et al. 2025 (LASP-2).
Strategy lasp2_strategy();

}  // namespace periplus::strategy::linear
