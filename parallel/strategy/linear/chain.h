#pragma once

#include "parallel/strategy/linear/strategy.h"

namespace periplus::strategy::linear {

/// A state goes from unit to unit, each of which folds its own element into it and sends it on (algorithms.md 5.8). Nothing is
/// sent where a document ends with a unit.
/// Steps    As many hops as units, one after another.
/// Bytes    H D E accumulator numbers per hop between ranks; transitions stay at home.
/// Memory   The rank's own elements and outgoing states.
/// Source   Sun et al. 2024 (LASP).
Strategy lasp_strategy();

/// The same in slices by heads, which follow each other: the chain takes (units + slices - 1) / slices state times.
/// Source   Chou et al. 2025 (ZeCO).
Strategy all_scan_strategy();

}  // namespace periplus::strategy::linear
