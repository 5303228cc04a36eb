#include "parallel/planner/regroup.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "parallel/planner/fill.h"

namespace periplus::planner {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
/// Of a time that counts as shorter.
constexpr double kShorter = 1 - 1e-9;

struct Load {
  double seconds;
  std::int64_t tokens;
  std::size_t group;
};

/// Groups of one choice by load; the first with memory is the one that ends first.
using Loads = std::vector<Load>;

std::size_t first_with_memory(const Loads& loads, std::int64_t length, std::int64_t capacity) {
  std::size_t at = 0;
  while (at < loads.size() && loads[at].tokens > capacity - length) ++at;
  return at;
}

void put(Loads& loads, std::size_t at, double seconds, std::int64_t tokens) {
  Load load = loads[at];
  load.seconds += seconds, load.tokens += tokens;
  for (; at + 1 < loads.size() && loads[at + 1].seconds < load.seconds; ++at) loads[at] = loads[at + 1];
  loads[at] = load;
}

std::vector<int> choices_of(std::span<const int> counts) {
  std::vector<int> choices;
  for (std::size_t c = 0; c < counts.size(); ++c) choices.insert(choices.end(), static_cast<std::size_t>(counts[c]), static_cast<int>(c));
  return choices;
}

class PartitionSearch {
 public:
  PartitionSearch(const Batch& batch, const Menu& menu, MicroBatch& micro_batch, int tries)
      : batch_(batch), menu_(menu), best_(micro_batch), tries_(tries) {
    for (const Group& group : best_.groups) members_.insert(members_.end(), group.members.begin(), group.members.end());
    std::ranges::sort(members_);
  }

  bool run() {
    std::vector<int> counts(menu_.kinds.size(), 0);
    for (const Group& group : best_.groups) {
      ++counts[static_cast<std::size_t>(std::ranges::find(menu_.kinds, group.kind) - menu_.kinds.begin())];
    }
    bool shorter = false;
    fill_up(counts);
    shorter = attempt(counts);
    for (bool moved = true; moved && tries_ > 0;) {
      moved = false;
      for (std::vector<int>& near : neighbours(counts)) {
        if (!attempt(near)) continue;
        counts = std::move(near);
        shorter = moved = true;
        break;
      }
    }
    return shorter;
  }

 private:
  int devices_of(const std::vector<int>& counts) const {
    return std::inner_product(counts.begin(), counts.end(), menu_.degrees.begin(), 0);
  }

  /// Idle devices become groups, the largest that fit.
  void fill_up(std::vector<int>& counts) const {
    int left = batch_.cost.devices() - devices_of(counts);
    for (std::size_t c = counts.size(); c-- > 0;) {
      counts[c] += left / menu_.degrees[c];
      left %= menu_.degrees[c];
    }
  }

  /// One group less of a degree and its devices given to the next smaller one, or the other way round.
  std::vector<std::vector<int>> neighbours(const std::vector<int>& counts) const {
    std::vector<std::vector<int>> all;
    for (std::size_t from = 0; from < counts.size(); ++from) {
      if (counts[from] == 0) continue;
      if (from > 0) {
        std::vector<int> halved = counts;
        --halved[from];
        halved[from - 1] += menu_.degrees[from] / menu_.degrees[from - 1];
        fill_up(halved);
        all.push_back(std::move(halved));
      }
      if (from + 1 == counts.size()) continue;
      const int needed = (menu_.degrees[from + 1] + menu_.degrees[from] - 1) / menu_.degrees[from];
      if (counts[from] < needed) continue;
      std::vector<int> merged = counts;
      merged[from] -= needed;
      ++merged[from + 1];
      fill_up(merged);
      all.push_back(std::move(merged));
    }
    return all;
  }

  /// Device-seconds that the members need at least from groups of these degrees, shared by all devices.
  double bound(const std::vector<int>& counts) const {
    double sum = 0, longest = 0;
    for (const int k : members_) {
      double work = kNever, seconds = kNever;
      for (std::size_t c = 0; c < counts.size(); ++c) {
        if (counts[c] == 0) continue;
        const double time = menu_.time(k, static_cast<int>(c));
        work = std::min(work, menu_.degrees[c] * time), seconds = std::min(seconds, time);
      }
      sum += work, longest = std::max(longest, seconds);
    }
    return std::max(longest, sum / batch_.cost.devices());
  }

  bool attempt(const std::vector<int>& counts) {
    if (tries_ <= 0 || !tried_.insert(counts).second || bound(counts) >= best_.seconds * kShorter) return false;
    --tries_;
    std::optional<MicroBatch> found = assign_greedily(batch_, menu_, members_, counts, best_.seconds * kShorter);
    if (!found || !fits_side_by_side(batch_, menu_, choices_of(counts))) return false;
    best_ = std::move(*found);
    return true;
  }

  const Batch& batch_;
  const Menu& menu_;
  MicroBatch& best_;
  int tries_;
  std::vector<int> members_;
  std::set<std::vector<int>> tried_;
};

}  // namespace

std::optional<MicroBatch> assign_greedily(const Batch& batch, const Menu& menu, std::span<const int> members, std::span<const int> counts,
                                          double limit) {
  MicroBatch result;
  std::vector<Loads> loads(menu.kinds.size());
  for (std::size_t c = 0; c < menu.kinds.size(); ++c) {
    for (int i = 0; i < counts[c]; ++i) {
      loads[c].push_back({menu.start[c], 0, result.groups.size()});
      result.groups.push_back({.kind = menu.kinds[c], .seconds = menu.start[c], .tokens = 0, .members = {}});
    }
  }
  for (const int k : members) {
    const std::int64_t length = batch.lengths[static_cast<std::size_t>(k)];
    double earliest = limit;
    std::size_t choice = menu.kinds.size(), at = 0;
    for (std::size_t c = 0; c < loads.size(); ++c) {
      const double seconds = menu.time(k, static_cast<int>(c));
      if (loads[c].empty() || loads[c].front().seconds + seconds >= earliest) continue;
      const std::size_t where = first_with_memory(loads[c], length, menu.capacity[c]);
      if (where == loads[c].size() || loads[c][where].seconds + seconds >= earliest) continue;
      earliest = loads[c][where].seconds + seconds, choice = c, at = where;
    }
    if (choice == menu.kinds.size()) return std::nullopt;
    Group& group = result.groups[loads[choice][at].group];
    put(loads[choice], at, menu.time(k, static_cast<int>(choice)), length);
    group.members.push_back(k);
    group.tokens += length;
    group.seconds = earliest;
    result.seconds = std::max(result.seconds, earliest);
  }
  std::erase_if(result.groups, [](const Group& group) { return group.members.empty(); });
  return result;
}

bool regroup(const Batch& batch, const Menu& menu, MicroBatch& micro_batch, int tries) {
  return PartitionSearch(batch, menu, micro_batch, tries).run();
}

}  // namespace periplus::planner
