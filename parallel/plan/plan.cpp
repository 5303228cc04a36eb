#include "parallel/plan/plan.h"

#include <fmt/format.h>

#include "runtime/error.h"

namespace periplus::plan {

std::int64_t Program::bytes_of(const View& view) const {
  const Slot& slot = slot_of(view);
  return view.rows * view.heads * slot.width * static_cast<std::int64_t>(size_of(slot.dtype));
}

std::int64_t Program::bytes_sent() const {
  std::int64_t sum = 0;
  for (const Message& message : sends) sum += bytes_of(message.view);
  return sum;
}

SlotId Program::find_slot(std::string_view name) const {
  std::string names;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    if (slots[i].name == name) return static_cast<SlotId>(i);
    names += (names.empty() ? "" : ", ") + slots[i].name;
  }
  throw InvalidArgument(fmt::format("plan: no slot is called '{}'; there are {}", name, names));
}

}  // namespace periplus::plan
