#pragma once

#include "parallel/planner/batch.h"
#include "parallel/planner/linear_program.h"

namespace periplus::planner {

/// No plan of the batch takes less. Each holds for true lengths, for any groups, kinds and micro-batches.
struct LowerBound {
  double area = 0;     ///< All devices busy with the cheapest kind of each sequence.
  double longest = 0;  ///< The longest sequence in its fastest group.
  double linear = 0;   ///< Linear programming; 0 where there is no such bound.
  double seconds() const noexcept;
};

/// The first two.
LowerBound simple_bound(const Batch& batch);

/// All three. The program has micro-batches by classes of duration; counts of them, of groups, and shares of sequences are
/// continuous, products of durations and counts are relaxed (McCormick); each long sequence needs a whole micro-batch as long
/// as itself, and of sequences over half a group's time or memory a group holds one. Sequences are bucketed, but what counts
/// are the duals: the Lagrangian is evaluated at them for every true length, so that neither buckets nor the solver's
/// tolerance nor a wrong answer can make the bound too high.
///
/// best: seconds of a plan that is known; the bound is of plans that beat it, and at most `best`.
/// Errors of the solver, NaN included, leave `linear` 0.
LowerBound linear_bound(const Batch& batch, double best, const SolveLinear& solve);

}  // namespace periplus::planner
