#include "parallel/plan/plan.h"

#include <algorithm>

#include <fmt/format.h>

#include "runtime/error.h"

namespace periplus::plan {

std::int64_t Program::bytes_sent() const {
  std::int64_t sum = 0;
  for (const Message& message : sends) sum += bytes_of(message.view);
  return sum;
}

SlotId Program::find_slot(std::string_view name) const {
  const auto found = std::ranges::find(slots, name, &Slot::name);
  if (found != slots.end()) return static_cast<SlotId>(found - slots.begin());
  std::string names;
  for (const Slot& slot : slots) names += (names.empty() ? "" : ", ") + slot.name;
  throw InvalidArgument(fmt::format("plan: no slot is called '{}'; there are {}", name, names));
}

}  // namespace periplus::plan
