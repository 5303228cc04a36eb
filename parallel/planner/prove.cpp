#include "parallel/planner/prove.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace periplus::planner {
namespace {

/// Of a time that counts as shorter.
constexpr double kShorter = 1 - 1e-12;

class BranchAndBound {
 public:
  BranchAndBound(const Batch& batch, double best, std::int64_t most_nodes) : batch_(batch), best_(best), left_(most_nodes) {
    rest_.assign(batch.lengths.size() + 1, 0.0);
    for (std::size_t k = batch.lengths.size(); k-- > 0;) rest_[k] = rest_[k + 1] + batch.least_work[k];
  }

  Proof run() {
    const std::int64_t before = left_;
    branch(0);
    return {.seconds = best_, .complete = left_ > 0, .nodes = before - left_};
  }

 private:
  double fixed() const { return batch_.cost.micro_batch_seconds() * static_cast<double>(micro_batches_.size()); }

  /// Micro-batches as long as they are, and as long as the work of all, done and to come, needs with no device idle.
  double bound(int next) const {
    double longest = 0, work = rest_[static_cast<std::size_t>(next)];
    for (const MicroBatch& micro_batch : micro_batches_) {
      longest += micro_batch.seconds;
      for (const Group& group : micro_batch.groups)
        work += batch_.cost.kinds()[static_cast<std::size_t>(group.kind)].degree * group.seconds;
    }
    return fixed() + std::max(longest, work / batch_.cost.devices());
  }

  void branch(int next) {
    if (left_ <= 0) return;
    --left_;
    const double least = bound(next);
    if (least >= best_ * kShorter) return;
    if (next == batch_.size()) {
      best_ = least;
      return;
    }
    for (std::size_t m = 0; m < micro_batches_.size(); ++m) {
      join(next, m);
      open(next, m);
    }
    micro_batches_.emplace_back();
    open(next, micro_batches_.size() - 1);
    micro_batches_.pop_back();
  }

  /// Into the groups of micro-batch m, of equal ones only the first.
  void join(int next, std::size_t m) {
    const std::int64_t length = batch_.lengths[static_cast<std::size_t>(next)];
    for (std::size_t g = 0; g < micro_batches_[m].groups.size(); ++g) {
      const Group before = micro_batches_[m].groups[g];
      const auto same = [&](const Group& other) {
        return other.kind == before.kind && other.seconds == before.seconds && other.tokens == before.tokens;
      };
      const auto first = std::ranges::find_if(micro_batches_[m].groups, same);
      if (static_cast<std::size_t>(first - micro_batches_[m].groups.begin()) != g) continue;
      if (before.tokens > batch_.cost.kinds()[static_cast<std::size_t>(before.kind)].capacity - length) continue;
      const double seconds = micro_batches_[m].seconds;
      Group& group = micro_batches_[m].groups[g];
      group.tokens += length, group.seconds += batch_.seconds(next, group.kind);
      micro_batches_[m].seconds = std::max(seconds, group.seconds);
      branch(next + 1);
      micro_batches_[m].groups[g] = before;
      micro_batches_[m].seconds = seconds;
    }
  }

  /// Into a new group of each kind.
  void open(int next, std::size_t m) {
    const std::int64_t length = batch_.lengths[static_cast<std::size_t>(next)];
    std::vector<int> degrees;
    for (const Group& group : micro_batches_[m].groups) degrees.push_back(batch_.cost.kinds()[static_cast<std::size_t>(group.kind)].degree);
    for (std::size_t kind = 0; kind < batch_.cost.kinds().size(); ++kind) {
      const Kind& about = batch_.cost.kinds()[kind];
      if (length > about.capacity) continue;
      degrees.push_back(about.degree);
      if (!place(degrees, batch_.cost.devices(), batch_.cost.devices_per_node()).empty()) {
        const double seconds = micro_batches_[m].seconds;
        const double own = about.start + batch_.seconds(next, static_cast<int>(kind));
        micro_batches_[m].groups.push_back({.kind = static_cast<int>(kind), .seconds = own, .tokens = length, .members = {}});
        micro_batches_[m].seconds = std::max(seconds, own);
        branch(next + 1);
        micro_batches_[m].groups.pop_back();
        micro_batches_[m].seconds = seconds;
      }
      degrees.pop_back();
    }
  }

  const Batch& batch_;
  double best_;
  std::int64_t left_;
  std::vector<double> rest_;  ///< Least work of the sequences from here on.
  std::vector<MicroBatch> micro_batches_;
};

}  // namespace

Proof prove(const Batch& batch, double best, std::int64_t most_nodes) { return BranchAndBound(batch, best, most_nodes).run(); }

}  // namespace periplus::planner
