#include "parallel/planner/baseline.h"

#include <algorithm>
#include <numeric>

#include "parallel/planner/chunk.h"
#include "parallel/planner/regroup.h"

namespace periplus::planner {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

std::optional<std::vector<MicroBatch>> plan_chunks(const Batch& batch, const Menu& menu, int chunks) {
  std::vector<MicroBatch> result;
  const std::vector<int> counts = {places(menu.degrees.front(), batch.cost.devices(), batch.cost.devices_per_node())};
  int begin = 0;
  for (const int end : cut_into_chunks(batch.lengths, chunks)) {
    std::vector<int> members(static_cast<std::size_t>(end - begin));
    std::iota(members.begin(), members.end(), begin);
    begin = end;
    std::optional<MicroBatch> micro_batch = assign_greedily(batch, menu, members, counts, kNever);
    if (!micro_batch) return std::nullopt;
    result.push_back(std::move(*micro_batch));
  }
  return result;
}

/// Rows of at most `capacity` tokens.
std::vector<Group> pack(const Batch& batch, int kind, bool best_fit) {
  const Kind& about = batch.cost.kinds()[static_cast<std::size_t>(kind)];
  std::vector<Group> rows;
  for (int k = 0; k < batch.size(); ++k) {
    const std::int64_t length = batch.lengths[static_cast<std::size_t>(k)];
    Group* chosen = nullptr;
    for (Group& row : rows) {
      if (row.tokens > about.capacity - length || (chosen != nullptr && row.tokens <= chosen->tokens)) continue;
      chosen = &row;
      if (!best_fit) break;
    }
    if (chosen == nullptr) chosen = &rows.emplace_back(Group{.kind = kind, .seconds = about.start, .tokens = 0, .members = {}});
    chosen->members.push_back(k);
    chosen->tokens += length;
    chosen->seconds += batch.seconds(k, kind);
  }
  return rows;
}

}  // namespace

double seconds_of(const Batch& batch, const std::vector<MicroBatch>& micro_batches) {
  double sum = 0;
  for (const MicroBatch& micro_batch : micro_batches) sum += batch.cost.micro_batch_seconds() + micro_batch.seconds;
  return sum;
}

std::optional<std::vector<MicroBatch>> plan_by_chunks(const Batch& batch, int kind, int more) {
  if (batch.size() == 0) return std::vector<MicroBatch>{};
  const std::int64_t capacity = batch.cost.kinds()[static_cast<std::size_t>(kind)].capacity;
  if (capacity < batch.lengths.front()) return std::nullopt;
  const std::vector<int> only = {kind};
  const Menu menu(batch, only);
  std::optional<std::vector<MicroBatch>> best;
  int last = batch.size();
  for (int chunks = std::min(batch.least_micro_batches(), batch.size()); chunks <= last; ++chunks) {
    std::optional<std::vector<MicroBatch>> found = plan_chunks(batch, menu, chunks);
    if (!found) continue;
    if (!best) last = std::min(last, chunks + more);
    if (!best || seconds_of(batch, *found) < seconds_of(batch, *best)) best = std::move(found);
  }
  return best;
}

std::optional<std::vector<MicroBatch>> plan_by_rows(const Batch& batch, int kind, bool best_fit) {
  const Kind& about = batch.cost.kinds()[static_cast<std::size_t>(kind)];
  if (batch.size() > 0 && about.capacity < batch.lengths.front()) return std::nullopt;
  std::vector<Group> rows = pack(batch, kind, best_fit);
  std::ranges::stable_sort(rows, std::greater(), &Group::seconds);
  const auto side_by_side = static_cast<std::size_t>(places(about.degree, batch.cost.devices(), batch.cost.devices_per_node()));
  std::vector<MicroBatch> result;
  for (std::size_t row = 0; row < rows.size(); ++row) {
    if (row % side_by_side == 0) result.push_back({.groups = {}, .seconds = rows[row].seconds});
    result.back().groups.push_back(std::move(rows[row]));
  }
  return result;
}

std::optional<std::vector<MicroBatch>> plan_of_kind(const Batch& batch, int kind, const SearchOptions& options) {
  std::optional<std::vector<MicroBatch>> best = plan_by_chunks(batch, kind, options.more_micro_batches);
  const auto take_if_better = [&](std::optional<std::vector<MicroBatch>> other) {
    if (other && (!best || seconds_of(batch, *other) < seconds_of(batch, *best))) best = std::move(other);
  };
  take_if_better(plan_by_rows(batch, kind, true));
  if (!best || batch.size() == 0) return best;  // no search where a sequence does not fit
  const std::vector<int> only = {kind};
  SearchResult found = search(batch, Menu(batch, only), options, [] { return false; });
  if (!found.micro_batches.empty()) take_if_better(std::move(found.micro_batches));
  return best;
}

Baselines baselines(const Batch& batch, std::int64_t max_length, const SearchOptions& options) {
  Baselines result;
  if (batch.size() == 0) return result;
  for (std::size_t kind = 0; kind < batch.cost.kinds().size(); ++kind) {
    const std::int64_t capacity = batch.cost.kinds()[kind].capacity;
    if (capacity < batch.lengths.front()) continue;
    const auto plan = plan_of_kind(batch, static_cast<int>(kind), options);
    const double seconds = plan ? seconds_of(batch, *plan) : kNever;
    if (result.adaptive_kind < 0 || seconds < result.adaptive) result.adaptive = seconds, result.adaptive_kind = static_cast<int>(kind);
    if (capacity < max_length) continue;
    if (result.static_kind < 0 || seconds < result.static_best) result.static_best = seconds, result.static_kind = static_cast<int>(kind);
  }
  if (result.static_kind >= 0) {
    result.first_fit = seconds_of(batch, *plan_by_rows(batch, result.static_kind, false));
    result.best_fit = seconds_of(batch, *plan_by_rows(batch, result.static_kind, true));
  }
  return result;
}

}  // namespace periplus::planner
