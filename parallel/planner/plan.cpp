#include "parallel/planner/plan.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "runtime/error.h"

namespace periplus::planner {
namespace {

/// Sums of the same numbers in another order.
constexpr double kRounding = 1e-9;

bool differ(double a, double b) { return !(std::abs(a - b) <= kRounding * std::max({1e-6, std::abs(a), std::abs(b)})); }

class Checker {
 public:
  Checker(const CostModel& cost, std::span<const std::int64_t> lengths) : cost_(cost), lengths_(lengths), seen_(lengths.size(), false) {}

  std::string check(const BatchPlan& plan) {
    double sum = 0;
    for (std::size_t i = 0; i < plan.micro_batches.size(); ++i) {
      if (std::string wrong = check_micro_batch(plan.micro_batches[i]); !wrong.empty()) return fmt::format("micro-batch {}: {}", i, wrong);
      sum += plan.micro_batches[i].seconds;
    }
    const auto missing = std::ranges::find(seen_, false);
    if (missing != seen_.end()) return fmt::format("sequence {} is in no group", missing - seen_.begin());
    if (differ(sum, plan.seconds)) return fmt::format("it takes {} s, not {}", sum, plan.seconds);
    if (plan.bound.seconds() > plan.seconds * (1 + kRounding))
      return fmt::format("it takes {} s, less than the lower bound {}", plan.seconds, plan.bound.seconds());
    return {};
  }

 private:
  std::string check_micro_batch(const PlannedMicroBatch& micro_batch) {
    if (micro_batch.groups.empty()) return "it is empty";
    std::vector<bool> taken(static_cast<std::size_t>(cost_.devices()), false);
    double longest = 0;
    for (const PlannedGroup& group : micro_batch.groups) {
      if (std::string wrong = check_group(group, taken); !wrong.empty())
        return fmt::format("group of rank {}: {}", group.first_rank, wrong);
      longest = std::max(longest, group.seconds);
    }
    const double seconds = cost_.micro_batch_seconds() + longest;
    return differ(seconds, micro_batch.seconds) ? fmt::format("it takes {} s, not {}", seconds, micro_batch.seconds) : std::string();
  }

  std::string check_group(const PlannedGroup& group, std::vector<bool>& taken) {
    if (group.kind < 0 || group.kind >= static_cast<int>(cost_.kinds().size())) return fmt::format("there is no kind {}", group.kind);
    const Kind& kind = cost_.kinds()[static_cast<std::size_t>(group.kind)];
    if (group.first_rank < 0 || group.first_rank + kind.degree > cost_.devices()) return "its ranks do not exist";
    const int per_node = cost_.devices_per_node();
    if (kind.degree <= per_node && group.first_rank / per_node != (group.first_rank + kind.degree - 1) / per_node)
      return "it crosses nodes but fits into one";
    if (kind.degree > per_node && group.first_rank % per_node != 0) return "it begins inside a node but needs whole ones";
    for (int rank = group.first_rank; rank < group.first_rank + kind.degree; ++rank) {
      if (taken[static_cast<std::size_t>(rank)]) return fmt::format("rank {} is also in another group", rank);
      taken[static_cast<std::size_t>(rank)] = true;
    }
    return check_sequences(group, kind);
  }

  std::string check_sequences(const PlannedGroup& group, const Kind& kind) {
    if (group.sequences.empty()) return "it has no sequences";
    double seconds = kind.start;
    std::int64_t tokens = 0;
    for (const int k : group.sequences) {
      if (k < 0 || k >= static_cast<int>(lengths_.size())) return fmt::format("there is no sequence {}", k);
      if (seen_[static_cast<std::size_t>(k)]) return fmt::format("sequence {} is there twice", k);
      seen_[static_cast<std::size_t>(k)] = true;
      seconds += kind.seconds(lengths_[static_cast<std::size_t>(k)]);
      tokens += lengths_[static_cast<std::size_t>(k)];
    }
    if (tokens > kind.capacity) return fmt::format("{} tokens, but memory holds {}", tokens, kind.capacity);
    return differ(seconds, group.seconds) ? fmt::format("it takes {} s, not {}", seconds, group.seconds) : std::string();
  }

  const CostModel& cost_;
  std::span<const std::int64_t> lengths_;
  std::vector<bool> seen_;
};

PlannedGroup to_group(const Batch& batch, const Group& group, int first_rank) {
  PlannedGroup planned{.first_rank = first_rank, .kind = group.kind, .sequences = {}, .seconds = 0};
  planned.seconds = batch.cost.kinds()[static_cast<std::size_t>(group.kind)].start;
  for (const int member : group.members) {
    planned.sequences.push_back(batch.origin[static_cast<std::size_t>(member)]);
    planned.seconds += batch.seconds(member, group.kind);
  }
  std::ranges::sort(planned.sequences);
  return planned;
}

}  // namespace

double BatchPlan::gap() const noexcept {
  const double least = bound.seconds();
  return least > 0 ? (seconds - least) / least : 0;
}

BatchPlan to_plan(const Batch& batch, std::span<const MicroBatch> micro_batches, std::string found_by) {
  BatchPlan plan{.micro_batches = {}, .seconds = 0, .found_by = std::move(found_by), .bound = {}};
  for (const MicroBatch& micro_batch : micro_batches) {
    std::vector<int> degrees;
    for (const Group& group : micro_batch.groups) degrees.push_back(batch.cost.kinds()[static_cast<std::size_t>(group.kind)].degree);
    const std::vector<int> first = place(degrees, batch.cost.devices(), batch.cost.devices_per_node());
    if (first.size() != degrees.size()) throw InternalError("planner: groups without a place");
    PlannedMicroBatch planned;
    double longest = 0;
    for (std::size_t g = 0; g < micro_batch.groups.size(); ++g) {
      planned.groups.push_back(to_group(batch, micro_batch.groups[g], first[g]));
      longest = std::max(longest, planned.groups.back().seconds);
    }
    std::ranges::sort(planned.groups, {}, &PlannedGroup::first_rank);
    planned.seconds = batch.cost.micro_batch_seconds() + longest;
    plan.seconds += planned.seconds;
    plan.micro_batches.push_back(std::move(planned));
  }
  return plan;
}

std::string refutation(const BatchPlan& plan, const CostModel& cost, std::span<const std::int64_t> lengths) {
  return Checker(cost, lengths).check(plan);
}

}  // namespace periplus::planner
