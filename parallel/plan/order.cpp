#include "parallel/plan/order.h"

#include <algorithm>

namespace periplus::plan {

void StepOrders::begin(int queue) {
  Order order;
  order.queue = queue;
  StepId& tail = tail_[static_cast<std::size_t>(queue)];
  if (tail >= 0) order.position = orders_[static_cast<std::size_t>(tail)].position + 1;
  orders_.push_back(order);
  if (tail >= 0) wait_for(tail);
  tail = last();
}

void StepOrders::wait_for(StepId earlier) {
  const Order& e = orders_[static_cast<std::size_t>(earlier)];
  Order& order = orders_.back();
  for (std::size_t q = 0; q < kQueues; ++q) order.before[q] = std::max(order.before[q], e.before[q]);
  std::int32_t& own = order.before[static_cast<std::size_t>(e.queue)];
  own = std::max(own, e.position + 1);
}

bool StepOrders::ordered(StepId earlier, StepId later) const {
  const Order &e = orders_[static_cast<std::size_t>(earlier)], &l = orders_[static_cast<std::size_t>(later)];
  return e.queue == l.queue ? e.position < l.position : e.position < l.before[static_cast<std::size_t>(e.queue)];
}

bool Lifetime::ends_before(const Lifetime& other, const StepOrders& orders) const {
  for (const StepId last : last_) {
    for (const StepId first : other.first_) {
      if (last >= 0 && first >= 0 && !orders.ordered(last, first)) return false;
    }
  }
  return true;
}

}  // namespace periplus::plan
