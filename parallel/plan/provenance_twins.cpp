#include "parallel/plan/provenance_twins.h"

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <utility>

namespace periplus::plan {
namespace {

using Words = std::pair<std::string_view, std::string_view>;
constexpr std::array<Words, 5> kTwinWords{{{"k", "v"}, {"dk", "dv"}, {"q", "dout"}, {"dout", "lse"}, {"out", "lse"}}};

/// The name of the slot that would follow: "dv.part.0" for "dk.part.0". Empty if there is none.
std::string follower_name(std::string_view leader) {
  for (std::size_t begin = 0; begin < leader.size();) {
    const std::size_t end = std::min(leader.find('.', begin), leader.size());
    const std::string_view word = leader.substr(begin, end - begin);
    for (const auto& [leads, follows] : kTwinWords) {
      if (word == leads) return std::string(leader.substr(0, begin)).append(follows).append(leader.substr(end));
    }
    begin = end + 1;
  }
  return {};
}

/// An input holds from the start what its name says.
bool start_alike(const Slot& leader, const Slot& follower) {
  if (leader.rows != follower.rows || leader.heads != follower.heads || leader.role != follower.role) return false;
  if (leader.role != Role::input) return true;
  const std::optional<Cell> leads = input_cell(leader.name), follows = input_cell(follower.name);
  return leads && follows && follower_of(*leads) == follows;
}

}  // namespace

std::optional<Cell> follower_of(Cell leader) {
  switch (leader) {
    case Cell::q:
      return Cell::dout;
    case Cell::dout:
      return Cell::lse;
    case Cell::k:
      return Cell::v;
    case Cell::dk:
      return Cell::dv;
    case Cell::out:
      return Cell::lse;
    case Cell::state_out:
      return Cell::state_lse;
    default:
      return std::nullopt;
  }
}

void Twins::find(const Plan& plan, bool wanted) {
  tables_.clear(), of_rank_.clear();
  const Program* before = nullptr;
  for (const Program& program : plan.programs) {
    // The programs of a plan mostly have slots of the same names.
    const bool known = before != nullptr && std::ranges::equal(program.slots, before->slots, {}, &Slot::name, &Slot::name) &&
                       fits(tables_.back(), program);
    if (!known) tables_.push_back(wanted ? table_of(program) : Table(program.slots.size()));
    of_rank_.push_back(tables_.size() - 1);
    before = &program;
  }
}

bool Twins::fits(const Table& table, const Program& program) {
  for (std::size_t slot = 0; slot < table.size(); ++slot) {
    const SlotId follower = table[slot].follower;
    if (follower != kNoSlot && !start_alike(program.slots[slot], program.slots[static_cast<std::size_t>(follower)])) return false;
  }
  return true;
}

Twins::Table Twins::table_of(const Program& program) {
  Table table(program.slots.size());
  for (std::size_t leader = 0; leader < table.size(); ++leader) {
    const std::string name = follower_name(program.slots[leader].name);
    if (name.empty()) continue;
    const auto found = std::ranges::find(program.slots, name, &Slot::name);
    if (found == program.slots.end() || !start_alike(program.slots[leader], *found)) continue;
    const auto follower = static_cast<std::size_t>(found - program.slots.begin());
    if (table[follower].leader != kNoSlot) continue;
    table[leader].follower = static_cast<SlotId>(follower), table[follower].leader = static_cast<SlotId>(leader);
  }
  for (Mates& mates : table) {
    for (SlotId slot = mates.leader; slot != kNoSlot; slot = table[static_cast<std::size_t>(slot)].leader)
      mates.first = slot, ++mates.behind;
  }
  return table;
}

}  // namespace periplus::plan
