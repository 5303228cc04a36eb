#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/plan/plan.h"
#include "parallel/planner/plan.h"
#include "runtime/comm/pacing.h"

/// What a planner's plan of a batch takes, simulated and executed with kernels that sleep.
namespace periplus::launch::bench {

/// A model of which only sizes and times matter. Backward takes twice for matrices, as many flops as it needs for attention.
struct PacedModel {
  int layers = 2, heads = 8, head_size = 2;  ///< Small heads: their bytes are really moved.
  double attention_flops_per_second = 0;
  double matrix_seconds_per_token = 0;  ///< Of a layer, forward.
  comm::Links links;

  /// As the planner knows it; activations of one byte a token, so that memory_bytes counts tokens.
  planner::Model for_planner() const;
  planner::Machine machine(int ranks, std::int64_t tokens_per_rank) const;
};

/// The steps of all ranks in one training step, without the update of the weights: for each micro-batch and layer its matrices and
/// its attention, forward and then backward, in groups that share nothing but ranks.
class PacedBatch {
 public:
  PacedBatch(const PacedModel& model, const planner::BatchPlan& plan, const planner::CostModel& cost,
             std::span<const std::int64_t> lengths);

  /// Seconds until the last rank is done; ranks go on to their next group when they have finished theirs.
  double simulate() const;
  /// The same by threads over paced links.
  double execute() const;

 private:
  struct Group {
    int first_rank = 0;
    plan::Plan forward, backward;
    std::vector<double> matrix_seconds;  ///< By rank: of a layer, forward.
  };
  double pace(const plan::Program& program, const plan::Step& step) const;

  const PacedModel& model_;
  int ranks_;
  std::vector<Group> groups_;  ///< Of all micro-batches, in order.
};

}  // namespace periplus::launch::bench
