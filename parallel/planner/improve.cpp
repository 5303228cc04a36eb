#include "parallel/planner/improve.h"

#include <algorithm>
#include <cmath>

namespace periplus::planner {
namespace {

/// Of a time that counts as shorter.
constexpr double kShorter = 1 - 1e-9;

class Improvement {
 public:
  Improvement(const Batch& batch, std::span<const int> kinds, MicroBatch& micro_batch)
      : batch_(batch), kinds_(kinds), groups_(micro_batch.groups) {}

  /// One change of the longest group. False if there is none.
  bool step() {
    const auto longest = std::ranges::max_element(groups_, {}, &Group::seconds);
    if (longest == groups_.end()) return false;
    limit_ = longest->seconds * kShorter;
    const auto at = static_cast<std::size_t>(longest - groups_.begin());
    return change_kind(at) || exchange(at) || grow(at) || halve(at);
  }

 private:
  const Kind& kind_of(const Group& group) const { return batch_.cost.kinds()[static_cast<std::size_t>(group.kind)]; }

  Group with_kind(const Group& group, int kind) const {
    Group changed = group;
    changed.kind = kind;
    changed.seconds = kind_of(changed).start;
    for (const int k : changed.members) changed.seconds += batch_.seconds(k, kind);
    return changed;
  }

  bool fits(const Group& group) const { return group.tokens <= kind_of(group).capacity && group.seconds < limit_; }

  /// The best kind of that degree; false if none is shorter than the limit.
  bool change_kind(std::size_t at, int degree) {
    Group best = groups_[at];
    best.seconds = limit_;
    bool found = false;
    for (const int kind : kinds_) {
      if (batch_.cost.kinds()[static_cast<std::size_t>(kind)].degree != degree) continue;
      Group changed = with_kind(groups_[at], kind);
      if (fits(changed) && changed.seconds < best.seconds) best = std::move(changed), found = true;
    }
    if (found) groups_[at] = std::move(best);
    return found;
  }
  bool change_kind(std::size_t at) { return change_kind(at, kind_of(groups_[at]).degree); }

  /// Moves and swaps: the one whose groups end first.
  struct Exchange {
    double seconds = 0;
    std::size_t other = 0, mine = 0, theirs = 0;  ///< theirs == its number of members: a move
    bool found = false;
  };

  void consider(std::size_t at, std::size_t other, std::size_t mine, std::size_t theirs, Exchange& best) const {
    const Group &from = groups_[at], &to = groups_[other];
    const int k = from.members[mine];
    const std::int64_t length = batch_.lengths[static_cast<std::size_t>(k)];
    double from_seconds = from.seconds - batch_.seconds(k, from.kind), to_seconds = to.seconds + batch_.seconds(k, to.kind);
    std::int64_t from_tokens = from.tokens - length, to_tokens = to.tokens + length;
    if (theirs < to.members.size()) {
      const int q = to.members[theirs];
      const std::int64_t back = batch_.lengths[static_cast<std::size_t>(q)];
      if (back >= length) return;
      from_seconds += batch_.seconds(q, from.kind), to_seconds -= batch_.seconds(q, to.kind);
      from_tokens += back, to_tokens -= back;
    }
    if (to_tokens > kind_of(to).capacity || from_tokens > kind_of(from).capacity) return;
    const double seconds = std::max(from_seconds, to_seconds);
    if (seconds < limit_ && (!best.found || seconds < best.seconds)) best = {seconds, other, mine, theirs, true};
  }

  bool exchange(std::size_t at) {
    Exchange best;
    for (std::size_t other = 0; other < groups_.size(); ++other) {
      if (other == at) continue;
      for (std::size_t mine = 0; mine < groups_[at].members.size(); ++mine) {
        for (std::size_t theirs = 0; theirs <= groups_[other].members.size(); ++theirs) consider(at, other, mine, theirs, best);
      }
    }
    if (!best.found) return false;
    Group &from = groups_[at], &to = groups_[best.other];
    const int k = from.members[best.mine];
    from.members.erase(from.members.begin() + static_cast<std::ptrdiff_t>(best.mine));
    if (best.theirs < to.members.size()) {
      from.members.push_back(to.members[best.theirs]);
      to.members.erase(to.members.begin() + static_cast<std::ptrdiff_t>(best.theirs));
    }
    to.members.push_back(k);
    for (Group* const group : {&from, &to}) recount(*group);
    if (from.members.empty()) groups_.erase(groups_.begin() + static_cast<std::ptrdiff_t>(at));
    return true;
  }

  void recount(Group& group) const {
    std::ranges::sort(group.members);
    group = with_kind(group, group.kind);
    group.tokens = 0;
    for (const int k : group.members) group.tokens += batch_.lengths[static_cast<std::size_t>(k)];
  }

  bool placed() const {
    std::vector<int> degrees;
    for (const Group& group : groups_) degrees.push_back(kind_of(group).degree);
    return !place(degrees, batch_.cost.devices(), batch_.cost.devices_per_node()).empty();
  }

  bool grow(std::size_t at) {
    const Group before = groups_[at];
    for (const int degree : batch_.cost.degrees()) {
      if (degree <= kind_of(before).degree || !change_kind(at, degree)) continue;
      if (placed()) return true;
      groups_[at] = before;
    }
    return false;
  }

  /// Two groups of the next smaller degree, the sequences dealt from the longest down to the one that ends first.
  bool halve(std::size_t at) {
    const int degree = kind_of(groups_[at]).degree;
    if (groups_[at].members.size() < 2) return false;
    for (const int kind : kinds_) {
      const Kind& about = batch_.cost.kinds()[static_cast<std::size_t>(kind)];
      if (2 * about.degree != degree) continue;
      Group halves[2];
      for (Group& half : halves) half = {.kind = kind, .seconds = about.start, .tokens = 0, .members = {}};
      for (const int k : groups_[at].members) {
        Group& half = halves[halves[1].seconds < halves[0].seconds ? 1 : 0];
        half.members.push_back(k);
        half.seconds += batch_.seconds(k, kind);
        half.tokens += batch_.lengths[static_cast<std::size_t>(k)];
      }
      if (!fits(halves[0]) || !fits(halves[1]) || halves[1].members.empty()) continue;
      const Group before = groups_[at];
      groups_[at] = halves[0];
      groups_.push_back(halves[1]);
      if (placed()) return true;
      groups_.pop_back();
      groups_[at] = before;
    }
    return false;
  }

  const Batch& batch_;
  std::span<const int> kinds_;
  std::vector<Group>& groups_;
  double limit_ = 0;
};

}  // namespace

bool improve(const Batch& batch, std::span<const int> kinds, MicroBatch& micro_batch, int rounds) {
  const double before = micro_batch.seconds;
  Improvement improvement(batch, kinds, micro_batch);
  for (int round = 0; round < rounds && improvement.step(); ++round) {
  }
  micro_batch.seconds = 0;
  for (const Group& group : micro_batch.groups) micro_batch.seconds = std::max(micro_batch.seconds, group.seconds);
  return micro_batch.seconds < before;
}

}  // namespace periplus::planner
