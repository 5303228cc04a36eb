#pragma once

#include <cstdint>
#include <future>
#include <optional>
#include <string>
#include <vector>

#include "parallel/planner/planner.h"
#include "parallel/problem.h"
#include "parallel/train/config.h"
#include "parallel/train/data/batch.h"
#include "parallel/train/data/corpus.h"
#include "parallel/train/data/packing.h"
#include "parallel/train/planner_costs.h"
#include "runtime/comm/communicator.h"

namespace periplus::train {

/// Consecutive ranks that train on some pieces together.
struct StepGroup {
  int first_rank = 0, ranks = 1;
  std::optional<AttentionOptions> attention;  ///< Nothing: as the configuration says.
  std::vector<Piece> pieces;
};

/// Who does what in one training step. Groups of a micro-batch run side by side; ranks of no group go on to the next, or
/// stand by with what they have of weights and gradients.
struct StepPlan {
  std::vector<std::vector<StepGroup>> micro_batches;
  std::int64_t tokens = 0, labels = 0;  ///< Of the step: the loss is a mean over its labels.
  double predicted_seconds = 0;         ///< Without the update of the weights; 0: nobody planned.
  double gap = 0;                       ///< Of the prediction over the planner's lower bound.
  std::string found_by;
};

/// What a rank does in a micro-batch.
struct Share {
  comm::Communicator group = {};
  std::optional<AttentionOptions> attention = {};  ///< Nothing: as the configuration says.
  std::optional<Batch> batch = {};                 ///< Nothing: it stands by.
};

/// Of this rank, for every micro-batch in which it has a group, and the others too if `stand_by`. All of a step at once: afterwards no rank
/// can fail alone for its data while others wait for it. Collective.
std::vector<Share> read_shares(const Corpus& corpus, const StepPlan& plan, LayoutKind layout, bool stand_by,
                               const comm::Communicator& communicator);

/// Makes the plan of every step: rows_per_step packed rows over all ranks, one after the other, or what the planner makes of
/// their pieces. Rank 0 plans step i + 1 beside step i, and sends plans as bytes; every rank checks what it got (planner/plan.h).
/// A plan depends on configuration, data and machine only, so that a run that goes on is the run that never stopped; no deadline
/// cuts the search short.
class StepPlanner {
 public:
  /// machine: nullptr if parallel.planner is "none". device: that all ranks compute on. Collective.
  /// Errors: InvalidArgument for what cannot be planned, such as a piece that no group has memory for.
  StepPlanner(const Config& config, const Packing& packing, DType dtype, const MachineDescription* machine, Device device,
              comm::Communicator communicator);

  /// Collective. step: 1-based, best asked for in order.
  StepPlan plan(std::int64_t step);
  std::int64_t epoch_of_step(std::int64_t step) const noexcept { return order_.epoch_of_step((step - 1) * config_.data.rows_per_step + 1); }
  /// nullptr without a planner.
  const planner::CostModel* cost() const noexcept { return planner_ ? &planner_->cost() : nullptr; }
  /// With parallel.planner "static", on rank 0: the kind of all groups, the fastest of those that hold every piece, over the
  /// batches of the first steps.
  std::optional<planner::Kind> static_kind() const;

 private:
  std::vector<std::vector<Piece>> rows_of(std::int64_t step);
  std::vector<Piece> pieces_of(std::int64_t step);
  void check_lengths() const;
  void choose_static_kind();
  planner::BatchPlan solve(const std::vector<std::int64_t>& lengths);
  std::string next_plan(std::int64_t step);
  StepPlan to_step(const planner::BatchPlan& plan, const std::vector<Piece>& pieces) const;

  const Config& config_;
  const Packing& packing_;
  comm::Communicator communicator_;
  RowOrder order_;
  std::optional<planner::Planner> planner_;
  int static_kind_ = -1;
  std::int64_t begun_step_ = 0;
  std::future<planner::BatchPlan> begun_;  ///< On rank 0: of begun_step_. It uses planner_, so nothing else may.
};

/// How groups of a kind distribute attention.
AttentionOptions options_of(const planner::Kind& kind);

/// A plan as bytes, and back. Errors: InvalidArgument for bytes that are none.
std::string to_bytes(const planner::BatchPlan& plan);
planner::BatchPlan plan_from_bytes(const std::string& bytes);

}  // namespace periplus::train
