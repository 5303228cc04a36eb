#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "parallel/plan/plan.h"

namespace periplus::plan {

/// One "no step" per queue.
inline std::array<StepId, kQueues> no_steps() noexcept {
  std::array<StepId, kQueues> steps;
  steps.fill(-1);
  return steps;
}

/// Which steps of one program have surely finished when another starts, given the queues and `after`: vector clocks with
/// one entry per queue. Steps are entered in program order. All of it is inline: builder and verifier ask for every access.
class StepOrders {
 public:
  /// Forgets all steps and keeps their memory.
  void clear() {
    orders_.clear();
    tail_ = no_steps();
  }
  /// Enters the next step, ordered after its predecessor in the queue.
  void begin(int queue) {
    StepId& tail = tail_[static_cast<std::size_t>(queue)];
    Order& order = orders_.emplace_back();
    if (tail >= 0) {
      order = orders_[static_cast<std::size_t>(tail)];
      order.before[static_cast<std::size_t>(queue)] = ++order.position;
    }
    order.queue = queue;
    tail = last();
  }
  /// Orders the step entered last after `earlier` too.
  void wait_for(StepId earlier) {
    const Order& e = orders_[static_cast<std::size_t>(earlier)];
    Order& order = orders_.back();
    for (std::size_t q = 0; q < kQueues; ++q) order.before[q] = std::max(order.before[q], e.before[q]);
    std::int32_t& own = order.before[static_cast<std::size_t>(e.queue)];
    own = std::max(own, e.position + 1);
  }
  int queue_of(StepId step) const { return orders_[static_cast<std::size_t>(step)].queue; }
  /// Whether `earlier` has surely finished when `later` starts.
  bool ordered(StepId earlier, StepId later) const {
    const Order &e = orders_[static_cast<std::size_t>(earlier)], &l = orders_[static_cast<std::size_t>(later)];
    return e.queue == l.queue ? e.position < l.position : e.position < l.before[static_cast<std::size_t>(e.queue)];
  }
  StepId last() const { return static_cast<StepId>(orders_.size()) - 1; }

 private:
  struct Order {
    int queue = 0;
    std::int32_t position = 0;                   ///< In its queue.
    std::array<std::int32_t, kQueues> before{};  ///< How many steps of each queue have surely finished when it starts.
  };
  std::vector<Order> orders_;
  std::array<StepId, kQueues> tail_ = no_steps();
};

/// First and last use of a slot in each queue.
class Lifetime {
 public:
  void use(int queue, StepId step) {
    const auto q = static_cast<std::size_t>(queue);
    if (first_[q] < 0) first_[q] = step;
    last_[q] = step;
    queues_ |= 1u << q;
    if (begin_ < 0) begin_ = step;
    end_ = step;
  }
  bool used() const noexcept { return begin_ >= 0; }
  StepId last_in(std::size_t queue) const { return last_[queue]; }
  bool in_one_queue() const noexcept { return std::popcount(queues_) <= 1; }
  /// Whether every use of this slot has surely finished before any use of the other starts: in program order at least.
  bool ends_before(const Lifetime& other, const StepOrders& orders) const {
    return end_ < other.begin_ ? all_ordered_before(other, orders) : !used() || !other.used();
  }
  bool apart(const Lifetime& other, const StepOrders& orders) const {
    return ends_before(other, orders) || other.ends_before(*this, orders);
  }

 private:
  bool all_ordered_before(const Lifetime& other, const StepOrders& orders) const;

  std::array<StepId, kQueues> first_ = no_steps(), last_ = no_steps();
  StepId begin_ = -1, end_ = -1;
  unsigned queues_ = 0;  ///< Bits of those that use it.
};

/// Whether two views of one slot, or of slots alike, share cells.
inline bool meet(const View& a, const View& b) noexcept {
  return a.row0 < b.row0 + b.rows && b.row0 < a.row0 + a.rows && a.head0 < b.head0 + b.heads && b.head0 < a.head0 + a.heads;
}
/// Whether they are the same cells.
inline bool same_place(const View& a, const View& b) noexcept {
  return a.row0 == b.row0 && a.rows == b.rows && a.head0 == b.head0 && a.heads == b.heads;
}
/// Whether every cell of `inner` is one of `outer`.
inline bool surrounds(const View& outer, const View& inner) noexcept {
  return outer.row0 <= inner.row0 && inner.row0 + inner.rows <= outer.row0 + outer.rows && outer.head0 <= inner.head0 &&
         inner.head0 + inner.heads <= outer.head0 + outer.heads;
}
/// Whether two views of a program share cells.
inline bool overlap(const View& a, const View& b) noexcept { return a.slot == b.slot && meet(a, b); }

/// Appends what an exchange touches, whose accesses begin at `begin`. It is an access as a whole, so messages that follow each other
/// in the rows of a slot are one access, and so are those that send the same again. Mostly the messages of two tensors take turns.
inline void append_joined(std::vector<Access>& accesses, std::size_t begin, const View& view, Mode mode) {
  for (std::size_t i = accesses.size(); i > begin && i + 2 > accesses.size(); --i) {
    auto& [before, before_mode] = accesses[i - 1];
    if (before.slot != view.slot || before_mode != mode) continue;
    if (mode == Mode::read && surrounds(before, view)) return;
    if (before.row0 + before.rows != view.row0 || before.head0 != view.head0 || before.heads != view.heads) continue;
    before.rows += view.rows;
    return;
  }
  accesses.push_back({view, mode});
}

/// Uses of one kind of a slot by one queue that a later step may have to wait for, oldest first. A queue finishes in order,
/// so a use that lies in the rectangle of a later one tells nothing more. Rows and heads count, not the slot: histories may be
/// those of another.
class Uses {
 public:
  void add(const View& view, StepId step) {
    if (empty() || uses_.back().step != step) settled_ = uses_.size();
    if (empty() || !surrounds(view, uses_.back().view)) uses_.emplace_back();
    settled_ = std::min(settled_, uses_.size() - 1);
    uses_.back().view = view, uses_.back().step = step;
  }
  /// Enters a write, and drops what it writes over.
  void replace(const View& view, StepId step) {
    if (is_one() && surrounds(view, uses_.back().view)) {
      uses_.back().view = view, uses_.back().step = step;
      settled_ = oldest_;
      return;
    }
    drop_within(view, step);
    add(view, step);
  }
  /// Drops those that a step writes over. Whoever conflicts with one of them conflicts with that write too, which follows it.
  /// Returns whether any are left.
  bool drop_within(const View& view, StepId step) {
    if (empty()) return false;
    // An exchange writes much, but nothing twice: its own uses need no look.
    if (uses_.back().step != step) settled_ = uses_.size();
    // Exchanges that follow each other mostly write the same in the same order; to look at all of them each time would take
    // the square of their messages. What is left of others does no harm.
    if (oldest_ < settled_ && same_place(uses_[oldest_].view, view)) return drop_oldest();
    if (is_one() && (oldest_ == settled_ || !surrounds(view, uses_.back().view))) return true;
    const auto begin = uses_.begin() + static_cast<std::ptrdiff_t>(oldest_), end = uses_.begin() + static_cast<std::ptrdiff_t>(settled_);
    const auto kept = std::remove_if(begin, end, [&](const Use& use) { return surrounds(view, use.view); });
    settled_ = static_cast<std::size_t>(kept - uses_.begin());
    uses_.erase(kept, end);
    return !empty();
  }
  void clear() {
    uses_.clear();
    oldest_ = settled_ = 0;
  }
  /// The latest step whose use shares cells with a view, or -1.
  StepId latest_on(const View& view) const {
    for (std::size_t i = uses_.size(); i-- > oldest_;) {
      if (meet(uses_[i].view, view)) return uses_[i].step;
    }
    return -1;
  }

 private:
  struct Use {
    View view;
    StepId step = -1;
  };
  bool empty() const { return oldest_ == uses_.size(); }
  bool is_one() const { return oldest_ + 1 == uses_.size(); }
  bool drop_oldest() {
    if (++oldest_ == uses_.size()) {
      clear();
      return false;
    }
    if (2 * oldest_ < uses_.size()) return true;
    uses_.erase(uses_.begin(), uses_.begin() + static_cast<std::ptrdiff_t>(oldest_));
    settled_ -= oldest_, oldest_ = 0;
    return true;
  }
  std::vector<Use> uses_;
  std::size_t oldest_ = 0;   ///< Those before it are dropped.
  std::size_t settled_ = 0;  ///< Those before it are of steps before that of the last.
};

/// What uses of a slot there were.
class SlotUses {
 public:
  /// The latest steps by queue that an access of a step conflicts with and that may not have finished when it starts: fn(other).
  template <class Fn>
  void for_unordered(const View& view, Mode mode, StepId step, const StepOrders& orders, Fn&& fn) const {
    const auto latest_of = [&](const Uses& uses) {
      if (const StepId other = uses.latest_on(view); other >= 0 && !orders.ordered(other, step)) fn(other);
    };
    const unsigned writing = writing_ & ~(1u << orders.queue_of(step)), reading = mode == Mode::read ? 0 : reading_;
    for_queues(writing | (reading & ~(1u << orders.queue_of(step))), [&](std::size_t queue) {
      // A queue finishes in order: with its last use of the slot all have.
      if (orders.ordered(lifetime_.last_in(queue), step)) return;
      if ((writing >> queue & 1) != 0) latest_of(writes_[queue]);
      if ((reading >> queue & 1) != 0) latest_of(reads_[queue]);
    });
  }
  /// Enters a use of a step that is ordered behind all earlier ones it conflicts with.
  void remember(const View& view, Mode mode, StepId step, int queue) {
    lifetime_.use(queue, step);
    const unsigned own = 1u << queue;
    if (mode == Mode::read) {
      reading_ |= own;
      return reads_[static_cast<std::size_t>(queue)].add(view, step);
    }
    for_queues(reading_, [&](std::size_t q) { reading_ &= ~(reads_[q].drop_within(view, step) ? 0 : 1u << q); });
    for_queues(writing_ & ~own, [&](std::size_t q) { writing_ &= ~(writes_[q].drop_within(view, step) ? 0 : 1u << q); });
    writing_ |= own;
    writes_[static_cast<std::size_t>(queue)].replace(view, step);
  }
  const Lifetime& lifetime() const { return lifetime_; }
  void clear() {
    for_queues(reading_, [&](std::size_t queue) { reads_[queue].clear(); });
    for_queues(writing_, [&](std::size_t queue) { writes_[queue].clear(); });
    reading_ = writing_ = 0;
    lifetime_ = {};
  }

 private:
  template <class Fn>
  static void for_queues(unsigned queues, Fn&& fn) {
    for (; queues != 0; queues &= queues - 1) fn(static_cast<std::size_t>(std::countr_zero(queues)));
  }
  std::array<Uses, kQueues> reads_, writes_;  ///< by queue
  unsigned reading_ = 0, writing_ = 0;        ///< Bits of queues of which some are left; most slots know one or two.
  Lifetime lifetime_;
};

/// What uses of all slots of a program there were. Slots that every step so far used side by side, keys and values mostly, have
/// one history between them: that of the first. Each of the others follows one.
class Histories {
 public:
  /// Forgets all uses and keeps their memory.
  void clear(std::size_t slots) {
    for (SlotUses& uses : uses_) uses.clear();
    if (uses_.size() < slots) uses_.resize(slots);
    pairs_.assign(uses_.size(), {});
  }
  /// The accesses of the next step that count(view) and have a history to look at: not those that do what the access before
  /// them does and always did. The step is to be remembered with them.
  template <class Count>
  std::span<const Access> distinct(std::span<const Access> accesses, Count&& count) {
    while (!find_distinct(accesses, count)) {
    }
    return distinct_;
  }
  SlotUses& of(const View& view) { return uses_[static_cast<std::size_t>(view.slot)]; }
  const SlotUses& of(const View& view) const { return uses_[static_cast<std::size_t>(view.slot)]; }
  const Lifetime& lifetime(std::size_t slot) const { return uses_[first_of(slot)].lifetime(); }

 private:
  struct Pair {
    SlotId leader = kNoSlot, follower = kNoSlot;
    bool known = false;  ///< Used before.
  };
  Pair& pair(SlotId slot) { return pairs_[static_cast<std::size_t>(slot)]; }
  static bool alike(const Access& a, const Access& b) { return a.mode == b.mode && same_place(a.view, b.view); }
  /// Whether it went through. If not, two slots went apart, and accesses left out before may count now.
  template <class Count>
  bool find_distinct(std::span<const Access> accesses, Count&& count);
  /// The slot that has the history of one.
  std::size_t first_of(std::size_t slot) const {
    while (pairs_[slot].leader != kNoSlot) slot = static_cast<std::size_t>(pairs_[slot].leader);
    return slot;
  }
  void part(SlotId follower) {
    const SlotId leader = std::exchange(pair(follower).leader, kNoSlot);
    pair(leader).follower = kNoSlot;
    uses_[static_cast<std::size_t>(follower)] = uses_[first_of(static_cast<std::size_t>(leader))];
  }

  std::vector<SlotUses> uses_;
  std::vector<Pair> pairs_;
  std::vector<Access> distinct_;
};

template <class Count>
bool Histories::find_distinct(std::span<const Access> accesses, Count&& count) {
  distinct_.clear();
  SlotId new_slot = kNoSlot;  // that of the access before, if it was its first use
  for (std::size_t i = 0; i < accesses.size(); ++i) {
    const Access& access = accesses[i];
    const SlotId slot = access.view.slot, new_before = std::exchange(new_slot, kNoSlot);
    if (!count(access.view)) continue;
    Pair& own = pair(slot);
    if (own.leader != kNoSlot && (i == 0 || accesses[i - 1].view.slot != own.leader || !alike(accesses[i - 1], access))) {
      part(slot);
      return false;
    }
    if (own.follower != kNoSlot &&
        (i + 1 == accesses.size() || accesses[i + 1].view.slot != own.follower || !alike(access, accesses[i + 1]))) {
      part(own.follower);
      return false;
    }
    if (!own.known) {
      own.known = true;
      new_slot = slot;
      if (new_before != kNoSlot && alike(accesses[i - 1], access)) own.leader = new_before, pair(new_before).follower = slot;
    }
    if (own.leader != kNoSlot) continue;
    distinct_.push_back(access);
  }
  return true;
}

}  // namespace periplus::plan
