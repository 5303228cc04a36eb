#pragma once

#include <array>
#include <cstdint>
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
/// one entry per queue. Steps are entered in program order.
class StepOrders {
 public:
  /// Enters the next step, ordered after its predecessor in the queue.
  void begin(int queue);
  /// Orders the step entered last after `earlier` too.
  void wait_for(StepId earlier);
  int queue_of(StepId step) const { return orders_[static_cast<std::size_t>(step)].queue; }
  /// Whether `earlier` has surely finished when `later` starts.
  bool ordered(StepId earlier, StepId later) const;
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
  }
  bool used() const noexcept { return first_ != no_steps(); }
  /// Whether every use of this slot has surely finished before any use of the other starts.
  bool ends_before(const Lifetime& other, const StepOrders& orders) const;
  bool apart(const Lifetime& other, const StepOrders& orders) const {
    return ends_before(other, orders) || other.ends_before(*this, orders);
  }

 private:
  std::array<StepId, kQueues> first_ = no_steps(), last_ = no_steps();
};

/// Whether two views share cells.
inline bool overlap(const View& a, const View& b) noexcept {
  return a.slot == b.slot && a.row0 < b.row0 + b.rows && b.row0 < a.row0 + a.rows && a.head0 < b.head0 + b.heads &&
         b.head0 < a.head0 + a.heads;
}

/// Whether every cell of `inner` is one of `outer`.
inline bool contains(const View& outer, const View& inner) noexcept {
  return outer.slot == inner.slot && outer.row0 <= inner.row0 && inner.row0 + inner.rows <= outer.row0 + outer.rows &&
         outer.head0 <= inner.head0 && inner.head0 + inner.heads <= outer.head0 + outer.heads;
}

}  // namespace periplus::plan
