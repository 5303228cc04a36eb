#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "parallel/planner/batch.h"
#include "parallel/planner/bound.h"

namespace periplus::planner {

struct PlannedGroup {
  int first_rank = 0;
  int kind = 0;                ///< Of the cost model: degree, method.
  std::vector<int> sequences;  ///< Indices of the input, ascending; never empty.
  double seconds = 0;
};

struct PlannedMicroBatch {
  std::vector<PlannedGroup> groups;  ///< By first rank. Ranks of no group idle.
  double seconds = 0;                ///< micro_batch_seconds and the longest group.
};

struct BatchPlan {
  std::vector<PlannedMicroBatch> micro_batches;
  double seconds = 0;    ///< Sum over micro-batches.
  std::string found_by;  ///< "search", or the fall-back and why it was needed.
  LowerBound bound;
  /// How far from optimal it can be: (seconds - bound) / bound.
  double gap() const noexcept;
};

/// Ranks and input indices for groups; sums recomputed. Errors: InternalError if groups find no place.
BatchPlan to_plan(const Batch& batch, std::span<const MicroBatch> micro_batches, std::string found_by);

/// Checks a plan from nothing but the lengths and the cost model: each sequence exactly once, memory, ranks that exist and are
/// disjoint, groups inside a node where they fit into one, times. Empty, or what is wrong.
std::string refutation(const BatchPlan& plan, const CostModel& cost, std::span<const std::int64_t> lengths);

}  // namespace periplus::planner
