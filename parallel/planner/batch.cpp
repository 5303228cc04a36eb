#include "parallel/planner/batch.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include <fmt/format.h>

#include "runtime/error.h"

namespace periplus::planner {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

void check_lengths(const CostModel& cost, std::span<const std::int64_t> lengths) {
  constexpr std::int64_t kMost = std::int64_t{1} << 62;
  const std::int64_t longest = cost.longest();
  std::int64_t sum = 0;
  for (std::size_t k = 0; k < lengths.size(); ++k) {
    const std::int64_t length = lengths[k];
    if (length < 0) throw InvalidArgument(fmt::format("planner: sequence {} has length {}; lengths must be >= 0", k, length));
    if (length > longest) {
      throw InvalidArgument(
          fmt::format("planner: sequence {} of {} tokens fits no group: {} devices hold at most {} tokens; {} devices would do", k, length,
                      cost.devices(), longest, cost.devices_for(length)));
    }
    if (length > kMost - sum) throw InvalidArgument("planner: the lengths add up to more than 2^62 tokens");
    sum += length;
  }
}

}  // namespace

Batch::Batch(const CostModel& cost_model, std::span<const std::int64_t> given) : cost(cost_model), kinds_(cost_model.kinds().size()) {
  check_lengths(cost, given);
  origin.resize(given.size());
  std::iota(origin.begin(), origin.end(), 0);
  std::ranges::stable_sort(origin, std::greater(), [&](int k) { return given[static_cast<std::size_t>(k)]; });
  seconds_.reserve(given.size() * kinds_);
  for (const int k : origin) {
    const std::int64_t length = given[static_cast<std::size_t>(k)];
    lengths.push_back(length);
    tokens += length;
    double work = kNever, shortest = kNever;
    for (const Kind& kind : cost.kinds()) {
      const double seconds = length <= kind.capacity ? kind.seconds(length) : kNever;
      seconds_.push_back(seconds);
      work = std::min(work, kind.degree * seconds);
      shortest = std::min(shortest, seconds);
    }
    least_work.push_back(work);
    least_seconds.push_back(shortest);
  }
}

int Batch::least_micro_batches() const {
  const std::int64_t capacity = cost.tokens_per_micro_batch();
  return static_cast<int>(std::max<std::int64_t>(1, (tokens + capacity - 1) / capacity));
}

Menu::Menu(const Batch& batch, std::span<const int> chosen) : kinds(chosen.begin(), chosen.end()) {
  for (const int kind : kinds) {
    const Kind& about = batch.cost.kinds()[static_cast<std::size_t>(kind)];
    degrees.push_back(about.degree);
    start.push_back(about.start);
    capacity.push_back(about.capacity);
  }
  seconds.reserve(kinds.size() * batch.lengths.size());
  for (int k = 0; k < batch.size(); ++k) {
    double work = kNever, shortest = kNever;
    for (std::size_t c = 0; c < kinds.size(); ++c) {
      seconds.push_back(batch.seconds(k, kinds[c]));
      work = std::min(work, degrees[c] * seconds.back());
      shortest = std::min(shortest, start[c] + seconds.back());
    }
    least_work.push_back(work), least_seconds.push_back(shortest);
  }
}

std::vector<int> place(std::span<const int> degrees, int devices, int devices_per_node) {
  std::vector<int> order(degrees.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, std::greater(), [&](int g) { return degrees[static_cast<std::size_t>(g)]; });
  std::vector<int> first(degrees.size(), -1);
  // Whole nodes from the front; then each smaller group into the node that it leaves least of.
  int next = 0;
  std::vector<int> used;  // devices of each node after the whole ones
  for (const int g : order) {
    const int degree = degrees[static_cast<std::size_t>(g)];
    if (degree > devices_per_node) {
      if (next + degree > devices) return {};
      first[static_cast<std::size_t>(g)] = next;
      next += degree;
      continue;
    }
    if (used.empty()) used.resize(static_cast<std::size_t>((devices - next + devices_per_node - 1) / devices_per_node), 0);
    int best = -1, least = devices_per_node + 1;
    for (int node = 0; node < static_cast<int>(used.size()); ++node) {
      const int begin = next + node * devices_per_node;
      const int left = std::min(devices_per_node, devices - begin) - used[static_cast<std::size_t>(node)] - degree;
      if (left >= 0 && left < least) least = left, best = node;
    }
    if (best < 0) return {};
    int& taken = used[static_cast<std::size_t>(best)];
    first[static_cast<std::size_t>(g)] = next + best * devices_per_node + taken;
    taken += degree;
  }
  return first;
}

int places(int degree, int devices, int devices_per_node) {
  if (degree > devices_per_node) return devices / degree;
  return devices / devices_per_node * (devices_per_node / degree) + devices % devices_per_node / degree;
}

}  // namespace periplus::planner
