#include "parallel/train/step_plan.h"

#include <algorithm>
#include <limits>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "parallel/train/agree.h"
#include "runtime/error.h"
#include "runtime/file.h"

namespace periplus::train {
namespace {

using nlohmann::json;
using planner::BatchPlan;

std::vector<std::int64_t> lengths_of(const std::vector<Piece>& pieces) {
  std::vector<std::int64_t> lengths;
  for (const Piece& piece : pieces) lengths.push_back(piece.length);
  return lengths;
}

void count(const std::vector<Piece>& pieces, StepPlan& plan) {
  for (const Piece& piece : pieces) {
    plan.tokens += piece.length;
    plan.labels += piece.length - 1;  // the last token of a piece predicts nothing
  }
}

/// All that a plan is made and checked by.
std::uint64_t digest_of(const planner::CostModel& cost) {
  std::string text = fmt::format("{} {} {:a}", cost.devices(), cost.devices_per_node(), cost.micro_batch_seconds());
  for (const planner::Kind& kind : cost.kinds()) {
    text += fmt::format("\n{} {} {} {:a} {:a} {:a} {:a} {}", kind.degree, planner::to_string(kind.method), kind.head_degree, kind.pair,
                        kind.hidden, kind.token, kind.start, kind.capacity);
  }
  return hash64(text);
}

planner::PlannerOptions without_deadline() {
  planner::PlannerOptions options;
  options.deadline_seconds = std::numeric_limits<double>::infinity();
  return options;
}

}  // namespace

std::vector<Share> read_shares(const Corpus& corpus, const StepPlan& plan, LayoutKind layout, bool stand_by,
                               const comm::Communicator& communicator) {
  std::vector<Share> shares;
  all_or_none(communicator, [&] {
    for (const std::vector<StepGroup>& micro_batch : plan.micro_batches) {
      const std::size_t before = shares.size();
      for (const StepGroup& of : micro_batch) {
        const int rank = communicator.rank() - of.first_rank;
        if (rank < 0 || rank >= of.ranks) continue;
        shares.push_back({.group = communicator.group(of.first_rank, of.ranks),
                          .attention = of.attention,
                          .batch = make_batch(corpus, of.pieces, layout, of.ranks, rank)});
        shares.back().batch->valid_labels = plan.labels;
      }
      if (stand_by && shares.size() == before) shares.emplace_back();
    }
  });
  return shares;
}

AttentionOptions options_of(const planner::Kind& kind) {
  using planner::Method;
  switch (kind.method) {
    case Method::local:
    case Method::ring:
      return {.strategy = "ring"};
    case Method::ulysses:
      return {.strategy = "ulysses"};
    case Method::usp:
      return {.strategy = "usp", .head_ranks = kind.head_degree};
    case Method::gather_kv:
      return {.strategy = "gather_kv"};
  }
  throw InternalError("train: the planner chose a method that training does not know");
}

std::string to_bytes(const BatchPlan& plan) {
  json micro_batches = json::array();
  for (const planner::PlannedMicroBatch& micro_batch : plan.micro_batches) {
    json groups = json::array();
    for (const planner::PlannedGroup& group : micro_batch.groups)
      groups.push_back({group.first_rank, group.kind, group.sequences, group.seconds});
    micro_batches.push_back({std::move(groups), micro_batch.seconds});
  }
  const auto packed =
      json::to_msgpack({std::move(micro_batches), plan.seconds, plan.found_by, plan.bound.area, plan.bound.longest, plan.bound.linear});
  return {packed.begin(), packed.end()};
}

BatchPlan plan_from_bytes(const std::string& bytes) {
  try {
    const json packed = json::from_msgpack(bytes);
    BatchPlan plan{.micro_batches = {},
                   .seconds = packed.at(1),
                   .found_by = packed.at(2),
                   .bound = {.area = packed.at(3), .longest = packed.at(4), .linear = packed.at(5)}};
    for (const json& micro_batch : packed.at(0)) {
      planner::PlannedMicroBatch planned{.groups = {}, .seconds = micro_batch.at(1)};
      for (const json& group : micro_batch.at(0))
        planned.groups.push_back({.first_rank = group.at(0), .kind = group.at(1), .sequences = group.at(2), .seconds = group.at(3)});
      plan.micro_batches.push_back(std::move(planned));
    }
    return plan;
  } catch (const json::exception& error) {
    throw InvalidArgument(fmt::format("train: the bytes of a plan are damaged: {}", error.what()));
  }
}

StepPlanner::StepPlanner(const Config& config, const Packing& packing, DType dtype, const MachineDescription* machine, Device device,
                         comm::Communicator communicator)
    : config_(config), packing_(packing), communicator_(std::move(communicator)), order_(packing, config.run.seed) {
  if (config.parallel.planner == "none") return;
  all_or_none(communicator_, [&] {
    if (machine == nullptr) {
      throw InvalidArgument(fmt::format("train: parallel.planner is {}, which needs to know the machine; give TrainOptions::machine",
                                        config.parallel.planner));
    }
    planner_.emplace(planner_costs(config, dtype, *machine, communicator_.size(), device), without_deadline());
    check_lengths();
  });
  comm::require_same_on_all_ranks(communicator_, digest_of(planner_->cost()), "what the planner knows of the machine", Stream());
  if (config.parallel.planner == "static") on_rank0(communicator_, [&] { choose_static_kind(); });
}

void StepPlanner::check_lengths() const {
  const std::int64_t longest = packing_.longest_piece();
  if (longest <= planner_->cost().longest()) return;
  throw InvalidArgument(fmt::format(
      "train: a document of {} tokens, or the part of it that data.context {} allows, fits no group of up to {} ranks: the largest has "
      "memory for {} tokens; lower data.context to that, or train on {} ranks",
      longest, config_.data.context, communicator_.size(), planner_->cost().longest(), planner_->cost().devices_for(longest)));
}

void StepPlanner::choose_static_kind() {
  constexpr std::int64_t kBatches = 8;
  double least = std::numeric_limits<double>::infinity();
  const auto kinds = planner_->cost().kinds();
  for (int kind = 0; kind < static_cast<int>(kinds.size()); ++kind) {
    if (kinds[static_cast<std::size_t>(kind)].capacity < packing_.longest_piece()) continue;
    double seconds = 0;
    for (std::int64_t step = 1; step <= std::min(kBatches, config_.run.steps); ++step)
      seconds += planner_->plan_of_kind(lengths_of(pieces_of(step)), kind).seconds;
    if (seconds < least) least = seconds, static_kind_ = kind;
  }
}

std::optional<planner::Kind> StepPlanner::static_kind() const {
  if (static_kind_ < 0) return std::nullopt;
  return planner_->cost().kinds()[static_cast<std::size_t>(static_kind_)];
}

std::vector<std::vector<Piece>> StepPlanner::rows_of(std::int64_t step) {
  std::vector<std::vector<Piece>> rows;
  for (std::int64_t i = 1; i <= config_.data.rows_per_step; ++i) {
    const std::span<const Piece> row = packing_.row(order_.row_of_step((step - 1) * config_.data.rows_per_step + i));
    rows.emplace_back(row.begin(), row.end());
  }
  return rows;
}

std::vector<Piece> StepPlanner::pieces_of(std::int64_t step) {
  std::vector<Piece> pieces;
  for (const std::vector<Piece>& row : rows_of(step)) pieces.insert(pieces.end(), row.begin(), row.end());
  return pieces;
}

BatchPlan StepPlanner::solve(const std::vector<std::int64_t>& lengths) {
  return config_.parallel.planner == "flexible" ? planner_->plan(lengths) : planner_->plan_of_kind(lengths, static_kind_);
}

/// The plan of a step, which was begun with the step before; then that of the next is.
std::string StepPlanner::next_plan(std::int64_t step) {
  if (begun_.valid() && begun_step_ != step) begun_.get();  // the planner is not for concurrent use
  const BatchPlan plan = begun_.valid() ? begun_.get() : solve(lengths_of(pieces_of(step)));
  if (step < config_.run.steps) {
    begun_step_ = step + 1;
    begun_ = std::async(std::launch::async, [this, lengths = lengths_of(pieces_of(step + 1))] { return solve(lengths); });
  }
  return to_bytes(plan);
}

StepPlan StepPlanner::plan(std::int64_t step) {
  if (!planner_) {
    StepPlan plan;
    for (std::vector<Piece>& row : rows_of(step)) {
      count(row, plan);
      plan.micro_batches.push_back({{.first_rank = 0, .ranks = communicator_.size(), .attention = {}, .pieces = std::move(row)}});
    }
    return plan;
  }
  std::string bytes;
  on_rank0(communicator_, [&] { bytes = next_plan(step); });
  bytes = communicator_.all_gather_bytes(bytes, Stream()).front();
  const std::vector<Piece> pieces = pieces_of(step);
  BatchPlan plan;
  all_or_none(communicator_, [&] {
    plan = plan_from_bytes(bytes);
    const std::string wrong = planner::refutation(plan, planner_->cost(), lengths_of(pieces));
    if (!wrong.empty()) throw InternalError(fmt::format("train: the plan of step {} is wrong: {}", step, wrong));
  });
  return to_step(plan, pieces);
}

StepPlan StepPlanner::to_step(const BatchPlan& plan, const std::vector<Piece>& pieces) const {
  StepPlan result{.micro_batches = {}, .predicted_seconds = plan.seconds, .gap = plan.gap(), .found_by = plan.found_by};
  count(pieces, result);
  for (const planner::PlannedMicroBatch& micro_batch : plan.micro_batches) {
    std::vector<StepGroup>& groups = result.micro_batches.emplace_back();
    for (const planner::PlannedGroup& planned : micro_batch.groups) {
      const planner::Kind& kind = planner_->cost().kinds()[static_cast<std::size_t>(planned.kind)];
      StepGroup& group = groups.emplace_back();
      group.first_rank = planned.first_rank, group.ranks = kind.degree, group.attention = options_of(kind);
      for (const int k : planned.sequences) group.pieces.push_back(pieces[static_cast<std::size_t>(k)]);
    }
  }
  return result;
}

}  // namespace periplus::train
