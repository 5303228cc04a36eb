#include "parallel/planner/search.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>
#include <numeric>

#include "parallel/planner/fill.h"

namespace periplus::planner {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
/// What fillings reach on average, of devices' time and memory: makes the estimate of a rest fair, not a bound.
constexpr double kWorkOverLeast = 1.03, kMemoryFill = 0.9;
/// Of a limit over the time that must fit in it, so that rounding does not keep it out.
constexpr double kSlack = 1e-9;
constexpr int kHalvings = 8;

/// A partial plan: its last micro-batch, and what came before.
struct Node {
  int before = -1;
  double seconds = 0, estimate = 0;
  std::vector<int> offered;
  Filling filling;
};

class Beam {
 public:
  Beam(const Batch& batch, const Menu& menu, const SearchOptions& options, const Expired& expired)
      : batch_(batch), options_(options), expired_(expired), filler_(batch, menu), menu_(menu) {}

  SearchResult run() {
    std::vector<int> all(batch_.lengths.size());
    std::iota(all.begin(), all.end(), 0);
    const int least = batch_.least_micro_batches();
    std::vector<int> level = {-1};
    for (int count = 1; !level.empty() && !out_of_time_; ++count) {
      // Fragments of memory may ask for more counts than planned: go on until there is a plan.
      if (count > least + options_.more_micro_batches && best_ >= 0) break;
      next_.clear();
      for (const int node : level) extend(node, node < 0 ? all : nodes_[static_cast<std::size_t>(node)].filling.rest);
      level = survivors();
    }
    return result();
  }

 private:
  double seconds_until(int node) const { return node < 0 ? 0 : nodes_[static_cast<std::size_t>(node)].seconds; }

  void extend(int before, const std::vector<int>& offered) {
    double longest = 0, work = 0;
    std::int64_t tokens = 0;
    for (const int k : offered) {
      longest = std::max(longest, menu_.least_seconds[static_cast<std::size_t>(k)]);
      work += menu_.least_work[static_cast<std::size_t>(k)];
      tokens += batch_.lengths[static_cast<std::size_t>(k)];
    }
    if (tokens <= batch_.cost.tokens_per_micro_batch()) finish(before, offered, std::max(longest, work / batch_.cost.devices()));
    for (const double limit : limits(offered)) {
      if (out_of_time_ || (out_of_time_ = expired_())) return;
      attempt(before, offered, limit);
    }
  }

  /// From the shortest time of the longest sequence to that of its cheapest group full of such sequences; and its time in each
  /// kind of group.
  std::vector<double> limits(const std::vector<int>& offered) const {
    const int head = offered.front();
    double least = kNever, most = 0, cheapest = kNever;
    std::vector<double> limits;
    for (int c = 0; c < menu_.size(); ++c) {
      const auto choice = static_cast<std::size_t>(c);
      const double seconds = menu_.start[choice] + menu_.time(head, c);
      if (!std::isfinite(seconds)) continue;
      limits.push_back(seconds * (1 + kSlack));
      least = std::min(least, seconds);
      if (const double work = menu_.degrees[choice] * menu_.time(head, c); work < cheapest) {
        cheapest = work;
        const double length = std::max<double>(1, static_cast<double>(batch_.lengths[static_cast<std::size_t>(head)]));
        most = seconds * std::max(1.0, static_cast<double>(menu_.capacity[choice]) / length);
      }
    }
    most = std::max(most, 2 * least);
    for (int i = 1; i < options_.limits && least > 0; ++i)
      limits.push_back(least * std::pow(most / least, i / (options_.limits - 1.0)) * (1 + kSlack));
    std::ranges::sort(limits);
    return limits;
  }

  /// One micro-batch for all that is left, as short as halving finds.
  void finish(int before, const std::vector<int>& offered, double bound) {
    double low = bound, high = 2.5 * bound;
    for (int i = 0; i < kHalvings && !out_of_time_; ++i) {
      out_of_time_ = expired_();
      const double limit = i == 0 ? high * (1 + kSlack) : (low + high) / 2;
      if (attempt(before, offered, limit)) {
        high = std::min(limit, filling_.seconds);
      } else if (i == 0) {
        return;
      } else {
        low = limit;
      }
    }
  }

  /// True if nothing is left over.
  bool attempt(int before, const std::vector<int>& offered, double limit) {
    filler_.fill(offered, limit, filling_);
    if (filling_.choice.empty() || !fits_side_by_side(batch_, menu_, filling_.choice)) return false;
    Node node;
    node.before = before;
    node.seconds = seconds_until(before) + batch_.cost.micro_batch_seconds() + filling_.seconds;
    const bool complete = filling_.rest.empty();
    if (node.seconds >= best_seconds_) return complete;
    node.estimate = node.seconds + (complete ? 0 : estimate_of_rest());
    if (!complete && !worth_keeping(node.estimate)) return false;
    node.offered = offered, node.filling = filling_;
    nodes_.push_back(std::move(node));
    const int index = static_cast<int>(nodes_.size()) - 1;
    if (complete) {
      best_ = index, best_seconds_ = nodes_.back().seconds;
    } else {
      next_.push_back(index);
    }
    return complete;
  }

  double estimate_of_rest() const {
    double work = 0;
    std::int64_t tokens = 0;
    for (const int k : filling_.rest) {
      work += menu_.least_work[static_cast<std::size_t>(k)];
      tokens += batch_.lengths[static_cast<std::size_t>(k)];
    }
    const double head = menu_.least_seconds[static_cast<std::size_t>(filling_.rest.front())];
    const double counts = static_cast<double>(tokens) / (kMemoryFill * static_cast<double>(batch_.cost.tokens_per_micro_batch()));
    return std::max(head, kWorkOverLeast * work / batch_.cost.devices()) + batch_.cost.micro_batch_seconds() * std::max(1.0, counts);
  }

  bool worth_keeping(double estimate) const {
    int better = 0;
    for (const int node : next_) better += nodes_[static_cast<std::size_t>(node)].estimate <= estimate;
    return better < 2 * options_.beam;  // twice: some will turn out to be the same
  }

  std::vector<int> survivors() const {
    const auto at = [&](int node) -> const Node& { return nodes_[static_cast<std::size_t>(node)]; };
    std::vector<int> order = next_, kept;
    std::ranges::stable_sort(order, {}, [&](int node) { return at(node).estimate; });
    for (const int node : order) {
      if (at(node).seconds >= best_seconds_) continue;
      const bool known = std::ranges::any_of(kept, [&](int other) { return at(other).filling.rest == at(node).filling.rest; });
      if (!known) kept.push_back(node);
      if (static_cast<int>(kept.size()) == options_.beam) break;
    }
    return kept;
  }

  SearchResult result() const {
    SearchResult result{.micro_batches = {}, .seconds = best_seconds_, .expired = out_of_time_};
    for (int n = best_; n >= 0; n = nodes_[static_cast<std::size_t>(n)].before) {
      const Node& node = nodes_[static_cast<std::size_t>(n)];
      result.micro_batches.push_back(micro_batch_of(node));
    }
    std::ranges::reverse(result.micro_batches);
    return result;
  }

  MicroBatch micro_batch_of(const Node& node) const {
    MicroBatch micro_batch{.groups = {}, .seconds = node.filling.seconds};
    for (const int choice : node.filling.choice) {
      const auto c = static_cast<std::size_t>(choice);
      micro_batch.groups.push_back({.kind = menu_.kinds[c], .seconds = menu_.start[c], .tokens = 0, .members = {}});
    }
    for (std::size_t at = 0; at < node.offered.size(); ++at) {
      if (node.filling.group_of[at] < 0) continue;
      Group& group = micro_batch.groups[static_cast<std::size_t>(node.filling.group_of[at])];
      group.members.push_back(node.offered[at]);
      group.tokens += batch_.lengths[static_cast<std::size_t>(node.offered[at])];
      group.seconds += batch_.seconds(node.offered[at], group.kind);
    }
    return micro_batch;
  }

  const Batch& batch_;
  const SearchOptions& options_;
  const Expired& expired_;
  Filler filler_;
  const Menu& menu_;
  Filling filling_;
  std::deque<Node> nodes_;  // whose elements stay where they are
  std::vector<int> next_;
  int best_ = -1;
  double best_seconds_ = kNever;
  bool out_of_time_ = false;
};

}  // namespace

SearchResult search(const Batch& batch, const Menu& menu, const SearchOptions& options, const Expired& expired) {
  if (batch.size() == 0) return {};
  return Beam(batch, menu, options, expired).run();
}

}  // namespace periplus::planner
