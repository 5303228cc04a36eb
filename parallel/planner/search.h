#pragma once

#include <functional>
#include <vector>

#include "parallel/planner/batch.h"

namespace periplus::planner {

/// True when the time for planning is over.
using Expired = std::function<bool()>;

struct SearchOptions {
  int beam = 4;                ///< Partial plans kept after each micro-batch.
  int limits = 10;             ///< Time limits tried for each micro-batch, beside the times of its longest sequence alone.
  int more_micro_batches = 4;  ///< Counts tried above the least that memory allows.
};

struct SearchResult {
  std::vector<MicroBatch> micro_batches;  ///< Empty: none was found.
  double seconds = 0;                     ///< Sum of the makespans, micro_batch_seconds included.
  bool expired = false;
};

/// Beam search over micro-batches, from the longest sequences down. A partial plan is extended by fillings of several time
/// limits, and judged by its time and the least that its rest can cost. Deterministic unless it expires.
SearchResult search(const Batch& batch, const Menu& menu, const SearchOptions& options, const Expired& expired);

}  // namespace periplus::planner
