#pragma once

#include <cstddef>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "parallel/plan/order.h"
#include "parallel/plan/plan.h"
#include "parallel/plan/provenance_pieces.h"

/// Tensors that go through a plan side by side: keys and values, their gradients, out and lse. A slot that leads and the one
/// that follows it hold the same rows and heads at all times, the same parts of them summed up; only what is in them differs. So
/// just one of the two is played: what follows is read as what leads, in other cells.
/// Which slots are twins is guessed from their names, and nothing rests on the guess. It is proven while the plan is played:
/// both start as the same rows of twin inputs, or empty, and whatever writes one of them must write the other likewise, from
/// twins, with no other use of either between. Where that fails, TwinsApart is thrown.
namespace periplus::plan {

/// Twins were none. It says nothing about the plan, which is then played without them.
struct TwinsApart {};

/// The cell that follows one that leads.
std::optional<Cell> follower_of(Cell leader);

/// The twins of a slot. At most one of the two is there.
struct Mates {
  SlotId follower = kNoSlot, leader = kNoSlot;
  bool alone() const noexcept { return follower == kNoSlot && leader == kNoSlot; }
};

/// The twins of all programs of a plan.
class Twins {
 public:
  /// Finds the twins of a plan, or none if they are not wanted.
  void find(const Plan& plan, bool wanted);
  /// By slot.
  std::span<const Mates> of(Rank rank) const { return tables_[of_rank_[static_cast<std::size_t>(rank)]]; }

 private:
  using Table = std::vector<Mates>;
  static bool fits(const Table& table, const Program& program);
  static Table table_of(const Program& program);
  std::vector<Table> tables_;
  std::vector<std::size_t> of_rank_;
};

/// Whether two views are the same rows and heads of twins.
inline bool are_twins(std::span<const Mates> mates, const View& leader, const View& follower) {
  return leader.present() && follower.present() && mates[static_cast<std::size_t>(leader.slot)].follower == follower.slot &&
         same_place(leader, follower);
}

/// fn(message, apart) for the messages of a step in one direction. Those of followers that do what leaders do are left out:
/// `apart` says how many messages later the follower's is, all of them with the same peer. It is 0 for all others.
template <class Fn>
void for_messages(std::span<const Message> messages, std::span<const Mates> mates, Fn&& fn) {
  for (std::size_t i = 0; i < messages.size();) {
    const Message& first = messages[i];
    std::size_t run = 0;
    if (mates[static_cast<std::size_t>(first.view.slot)].follower != kNoSlot) {
      const auto goes_on = [&](const Message& m) { return m.view.slot == first.view.slot && m.peer == first.peer; };
      for (run = 1; i + run < messages.size() && goes_on(messages[i + run]); ++run) {
      }
      bool followed = i + 2 * run <= messages.size();
      for (std::size_t j = i; followed && j < i + run; ++j)
        followed = messages[j + run].peer == first.peer && are_twins(mates, messages[j].view, messages[j + run].view);
      if (!followed) run = 0;
    }
    if (run == 0) {
      fn(first, 0);
      ++i;
      continue;
    }
    for (std::size_t j = i; j < i + run; ++j) fn(messages[j], static_cast<std::ptrdiff_t>(run));
    i += 2 * run;
  }
}

}  // namespace periplus::plan
