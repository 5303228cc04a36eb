#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "parallel/planner/baseline.h"
#include "parallel/planner/linear_program.h"
#include "parallel/planner/plan.h"
#include "parallel/planner/search.h"

namespace periplus::planner {

struct PlannerOptions {
  SearchOptions search;
  int regroup_tries = 24;   ///< Partitions of the devices tried for each micro-batch of the plan.
  int improve_rounds = 32;  ///< Changes to each micro-batch.
  bool with_linear_bound = true;
  double deadline_seconds = 2;    ///< For the search; past it the best plan so far is taken, or the fall-back.
  std::function<double()> clock;  ///< Seconds; empty: a steady clock.
  SolveLinear solve_linear;       ///< Empty: CLP.
};

/// Plans batches of sequences of unequal lengths: micro-batches, groups of any degree that the cost model has, the method of
/// each, their ranks, and which sequence goes where. The same lengths give the same plan, unless the deadline passes; lengths
/// in another order give a plan of the same cost. Up to 64 sequences never take longer than the best of plan_of_kind. No plan leaves here
/// that the checker (plan.h) refutes.
///
/// Fall-back: groups of one kind, the best (plan_by_chunks). BatchPlan::found_by says so and why.
/// Errors: InvalidArgument as Batch. Not for concurrent use: the solver's basis is kept from batch to batch.
class Planner {
 public:
  explicit Planner(CostModel cost, PlannerOptions options = {});

  BatchPlan plan(std::span<const std::int64_t> lengths);
  /// With groups of one kind; negative: of the kind that is best for the batch. Errors: InvalidArgument also for a sequence that
  /// groups of the kind cannot hold.
  BatchPlan plan_of_kind(std::span<const std::int64_t> lengths, int kind);
  const CostModel& cost() const noexcept { return cost_; }

 private:
  std::vector<MicroBatch> find(const Batch& batch, std::string& found_by) const;
  /// `late` is set when the time was over before the search was. Empty: nothing was found.
  std::vector<MicroBatch> find_among(const Batch& batch, std::span<const int> kinds, const Expired& expired, bool& late) const;
  void polish(const Batch& batch, std::span<const int> kinds, std::vector<MicroBatch>& micro_batches) const;
  std::vector<MicroBatch> fall_back(const Batch& batch) const;
  /// With its lower bound, and checked once more.
  BatchPlan finished(const Batch& batch, BatchPlan plan, std::span<const std::int64_t> lengths);

  CostModel cost_;
  PlannerOptions options_;
  DualSimplex simplex_;
};

}  // namespace periplus::planner
