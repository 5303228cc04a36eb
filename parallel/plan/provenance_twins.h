#pragma once

#include <algorithm>
#include <cstddef>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "parallel/plan/order.h"
#include "parallel/plan/plan.h"
#include "parallel/plan/provenance_pieces.h"

/// Tensors that go through a plan side by side: keys and values, their gradients, out and lse; in backward queries, dout and lse.
/// A slot that leads and the one that follows it hold the same rows and heads at all times, the same parts of them summed up; only
/// what is in them differs. What follows may itself be followed. So just the first is played: the others are read as that, in
/// other cells.
/// Which slots are twins is guessed from their names, and nothing rests on the guess. It is proven while the plan is played:
/// all start as the same rows of twin inputs, or empty, and whatever writes one of them must write the others likewise, from
/// twins, with no other use of any between. Where that fails, TwinsApart is thrown.
namespace periplus::plan {

/// Twins were none. It says nothing about the plan, which is then played without them.
struct TwinsApart {};

/// The cell that follows one that leads.
std::optional<Cell> follower_of(Cell leader);

/// The twins of a slot: the one that follows it, the one that it follows, and the one that all of them follow.
struct Mates {
  SlotId follower = kNoSlot, leader = kNoSlot, first = kNoSlot;
  int behind = 0;  ///< How many twins lead it.
  bool alone() const noexcept { return follower == kNoSlot && leader == kNoSlot; }
  bool leads_all() const noexcept { return leader == kNoSlot && follower != kNoSlot; }
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

/// Where the messages are that do what those of a slot that leads do: in so many runs behind theirs, each as long as that.
struct Followers {
  std::size_t run = 0, runs = 0;
  friend bool operator==(const Followers&, const Followers&) = default;
};

/// How the messages from one on are followed; runs are 0 where they are not, or not by all twins.
inline Followers followers_of(std::span<const Message> messages, std::span<const Mates> mates) {
  const Message& first = messages.front();
  const auto mates_of = [&](const View& view) -> const Mates& { return mates[static_cast<std::size_t>(view.slot)]; };
  if (!mates_of(first.view).leads_all()) return {};
  std::size_t run = 1, runs = 0;
  while (run < messages.size() && messages[run].view.slot == first.view.slot && messages[run].peer == first.peer) ++run;
  for (std::size_t before = 0; mates_of(messages[before].view).follower != kNoSlot; before += run, ++runs) {
    if (before + 2 * run > messages.size()) return {};
    for (std::size_t j = before; j < before + run; ++j) {
      if (messages[j + run].peer != first.peer || !are_twins(mates, messages[j].view, messages[j + run].view)) return {};
    }
  }
  return {run, runs};
}

/// fn(message, followers) for the messages of a step in one direction; those of followers that do what leaders do are left out.
template <class Fn>
void for_messages(std::span<const Message> messages, std::span<const Mates> mates, Fn&& fn) {
  while (!messages.empty()) {
    const Followers followers = followers_of(messages, mates);
    const std::size_t played = std::max<std::size_t>(followers.run, 1);
    for (const Message& message : messages.first(played)) fn(message, followers);
    messages = messages.subspan(played * (followers.runs + 1));
  }
}

}  // namespace periplus::plan
