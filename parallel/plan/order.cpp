#include "parallel/plan/order.h"

namespace periplus::plan {

bool Lifetime::all_ordered_before(const Lifetime& other, const StepOrders& orders) const {
  for (unsigned lasts = queues_; lasts != 0; lasts &= lasts - 1) {
    const StepId last = last_[static_cast<std::size_t>(std::countr_zero(lasts))];
    for (unsigned firsts = other.queues_; firsts != 0; firsts &= firsts - 1) {
      if (!orders.ordered(last, other.first_[static_cast<std::size_t>(std::countr_zero(firsts))])) return false;
    }
  }
  return true;
}

}  // namespace periplus::plan
