#include "parallel/planner/planner.h"

#include <algorithm>
#include <chrono>
#include <numeric>

#include <fmt/format.h>

#include "parallel/planner/improve.h"
#include "parallel/planner/regroup.h"
#include "runtime/error.h"

namespace periplus::planner {
namespace {

/// The first kind of each degree: heads are exchanged where the model allows it.
std::vector<int> usual_kinds(const CostModel& cost) {
  std::vector<int> kinds;
  for (std::size_t d = 0; d < cost.degrees().size(); ++d) kinds.push_back(cost.first_kind(static_cast<int>(d)));
  return kinds;
}

/// Those that are the fastest of their degree for some sequence, and the usual ones.
std::vector<int> useful_kinds(const Batch& batch) {
  const CostModel& cost = batch.cost;
  std::vector<int> kinds;
  for (int d = 0; d < static_cast<int>(cost.degrees().size()); ++d) {
    std::vector<bool> useful(cost.kinds().size(), false);
    useful[static_cast<std::size_t>(cost.first_kind(d))] = true;
    for (int k = 0; k < batch.size(); ++k) {
      int best = cost.first_kind(d);
      for (int kind = best; kind < cost.first_kind(d + 1); ++kind) {
        if (batch.seconds(k, kind) < batch.seconds(k, best)) best = kind;
      }
      useful[static_cast<std::size_t>(best)] = true;
    }
    for (int kind = cost.first_kind(d); kind < cost.first_kind(d + 1); ++kind) {
      if (useful[static_cast<std::size_t>(kind)]) kinds.push_back(kind);
    }
  }
  return kinds;
}

std::vector<int> all_kinds(const CostModel& cost) {
  std::vector<int> kinds(cost.kinds().size());
  std::iota(kinds.begin(), kinds.end(), 0);
  return kinds;
}

double steady_seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace

Planner::Planner(CostModel cost, PlannerOptions options) : cost_(std::move(cost)), options_(std::move(options)) {
  if (!options_.clock) options_.clock = steady_seconds;
}

void Planner::polish(const Batch& batch, std::span<const int> kinds, std::vector<MicroBatch>& micro_batches) const {
  const Menu menu(batch, kinds);
  for (MicroBatch& micro_batch : micro_batches) {
    regroup(batch, menu, micro_batch, options_.regroup_tries);
    improve(batch, kinds, micro_batch, options_.improve_rounds);
  }
}

std::vector<MicroBatch> Planner::find_among(const Batch& batch, std::span<const int> kinds, const Expired& expired, bool& late) const {
  SearchResult result = search(batch, Menu(batch, kinds), options_.search, expired);
  late = late || result.expired;
  std::vector<MicroBatch> best = std::move(result.micro_batches);
  if (best.empty()) return best;
  polish(batch, kinds, best);
  // Rows waste the least memory, so they may do with fewer micro-batches where it is all that counts; groups of one kind may be all
  // that a batch needs.
  const auto take_if_better = [&](std::optional<std::vector<MicroBatch>> other) {
    if (!other || seconds_of(batch, *other) >= seconds_of(batch, best)) return;
    polish(batch, kinds, *other);
    best = std::move(*other);
  };
  std::optional<double> least;
  int alone = kinds.front();
  for (const int kind : kinds) {
    take_if_better(plan_by_rows(batch, kind, true));
    const auto chunks = plan_by_chunks(batch, kind, 0);
    if (!chunks || (least && seconds_of(batch, *chunks) >= *least)) continue;
    least = seconds_of(batch, *chunks);
    alone = kind;
  }
  const std::vector<int> only = {alone};
  SearchResult of_one_kind = search(batch, Menu(batch, only), options_.search, expired);
  if (!of_one_kind.micro_batches.empty()) take_if_better(std::move(of_one_kind.micro_batches));
  return best;
}

std::vector<MicroBatch> Planner::find(const Batch& batch, std::string& found_by) const {
  const double end = options_.clock() + options_.deadline_seconds;
  const Expired expired = [&] { return options_.clock() >= end; };
  bool late = false;
  // The usual kinds on their own first: so that more kinds never cost anything.
  const std::vector<int> usual = usual_kinds(cost_), useful = useful_kinds(batch), every = all_kinds(cost_);
  std::vector<MicroBatch> best = find_among(batch, usual, expired, late);
  if (useful != usual) {
    for (MicroBatch& micro_batch : best) improve(batch, every, micro_batch, options_.improve_rounds);
    std::vector<MicroBatch> other = find_among(batch, useful, expired, late);
    if (!other.empty() && (best.empty() || seconds_of(batch, other) < seconds_of(batch, best))) best = std::move(other);
  }
  // Of few sequences one in a wrong place costs much, and searching with each kind alone costs little.
  constexpr int kFew = 64;
  for (std::size_t kind = 0; kind < cost_.kinds().size() && batch.size() <= kFew && !best.empty() && !expired(); ++kind) {
    auto of_kind = planner::plan_of_kind(batch, static_cast<int>(kind), options_.search);
    if (of_kind && seconds_of(batch, *of_kind) < seconds_of(batch, best)) best = std::move(*of_kind);
  }
  found_by = late ? "search until the deadline" : "search";
  if (best.empty()) found_by = late ? "fall-back: the deadline" : "fall-back: the search found nothing";
  return best.empty() ? fall_back(batch) : best;
}

std::vector<MicroBatch> Planner::fall_back(const Batch& batch) const {
  std::optional<std::vector<MicroBatch>> best;
  for (std::size_t kind = 0; kind < cost_.kinds().size(); ++kind) {
    std::optional<std::vector<MicroBatch>> found = plan_by_chunks(batch, static_cast<int>(kind), 0);
    if (found && (!best || seconds_of(batch, *found) < seconds_of(batch, *best))) best = std::move(found);
  }
  if (!best) throw InternalError("planner: no kind of group holds the longest sequence");
  return *best;
}

BatchPlan Planner::plan(std::span<const std::int64_t> lengths) {
  const Batch batch(cost_, lengths);
  if (batch.size() == 0) return {.micro_batches = {}, .seconds = 0, .found_by = "nothing to plan", .bound = {}};
  std::string found_by;
  BatchPlan plan = to_plan(batch, find(batch, found_by), "");
  plan.found_by = found_by;
  if (const std::string wrong = refutation(plan, cost_, lengths); !wrong.empty()) {
    plan = to_plan(batch, fall_back(batch), fmt::format("fall-back: the plan found is wrong: {}", wrong));
  }
  return finished(batch, std::move(plan), lengths);
}

BatchPlan Planner::plan_of_kind(std::span<const std::int64_t> lengths, int kind) {
  const Batch batch(cost_, lengths);
  if (batch.size() == 0) return {.micro_batches = {}, .seconds = 0, .found_by = "nothing to plan", .bound = {}};
  std::optional<std::vector<MicroBatch>> best;
  for (int candidate = 0; candidate < static_cast<int>(cost_.kinds().size()); ++candidate) {
    if (kind >= 0 && candidate != kind) continue;
    auto found = planner::plan_of_kind(batch, candidate, options_.search);
    if (found && (!best || seconds_of(batch, *found) < seconds_of(batch, *best))) best = std::move(found);
  }
  if (!best) throw InvalidArgument(fmt::format("planner: no group of kind {} holds the longest sequence, {}", kind, batch.lengths.front()));
  return finished(batch, to_plan(batch, *best, "groups of one kind"), lengths);
}

BatchPlan Planner::finished(const Batch& batch, BatchPlan plan, std::span<const std::int64_t> lengths) {
  const SolveLinear clp = [&](const LinearProgram& program) { return simplex_.solve(program); };
  plan.bound = options_.with_linear_bound ? linear_bound(batch, plan.seconds, options_.solve_linear ? options_.solve_linear : clp)
                                          : simple_bound(batch);
  if (const std::string wrong = refutation(plan, cost_, lengths); !wrong.empty()) throw InternalError(fmt::format("planner: {}", wrong));
  return plan;
}

}  // namespace periplus::planner
