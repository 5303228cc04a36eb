#include "parallel/plan/order.h"

namespace periplus::plan {

bool Lifetime::all_ordered_before(const Lifetime& other, const StepOrders& orders) const {
  for (const StepId last : last_) {
    if (last < 0) continue;
    for (const StepId first : other.first_) {
      if (first >= 0 && !orders.ordered(last, first)) return false;
    }
  }
  return true;
}

}  // namespace periplus::plan
