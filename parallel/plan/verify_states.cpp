#include "parallel/plan/verify_states.h"

#include <algorithm>

#include "parallel/plan/verify_states_steps.h"
#include "runtime/error.h"

namespace periplus::plan {
namespace {

using namespace play;

/// Plays the programs of all ranks.
class StatePlayer : StateSteps {
 public:
  using StateSteps::StateSteps;
  using StateSteps::where;

  void play() {
    for (rank_ = 0; rank_ < std::ssize(ranks_); ++rank_) bind();
    // The messages of a pair are met in the order in which they were sent, because phases rise on both ends.
    for (bool moved = true; moved;) {
      moved = false;
      for (rank_ = 0; rank_ < std::ssize(ranks_); ++rank_) {
        while (self().next < program().steps.size() && play_step(program().steps[self().next])) moved = true, ++self().next;
      }
    }
    for (rank_ = 0; rank_ < std::ssize(ranks_); ++rank_) check_results();
  }

 private:
  void check_results() {
    require(self().next == program().steps.size(), "waits for a message that never comes");
    const auto heads = static_cast<std::size_t>(claim_.q_heads);
    const auto missing = std::ranges::find_if(self().done, [&](std::uint8_t done) { return done != all_done(); });
    if (missing != self().done.end()) {
      const auto index = static_cast<std::size_t>(missing - self().done.begin());
      require(false, "rows {}+{} of head {} are never computed", self().runs[index / heads].row0, self().runs[index / heads].rows,
              index % heads);
    }
    if (claim_.backward) return;
    check_saved("incoming", self().incoming, false);
    if (claim_.bidirectional) check_saved("following", self().outgoing, true);
    if (claim_.keeps_transitions) check_transitions();
  }

  void check_saved(std::string_view name, const std::vector<UnitFold>& folds, bool down) {
    const View saved{program().find_slot(name), 0, std::ssize(folds), 0, claim_.q_heads};
    for (std::int64_t row = 0; row < saved.rows; ++row) {
      for (std::int64_t head = 0; head < saved.heads; ++head) {
        require_state(saved, row, head, state_of(folds[static_cast<std::size_t>(row)], down, false, head));
      }
    }
  }

  void check_transitions() {
    const SlotId id = program().find_slot("transitions");
    const View saved{id, 0, program().slots[static_cast<std::size_t>(id)].rows, 0, claim_.q_heads};
    for (std::int64_t unit = 0; unit < saved.rows; ++unit) {
      for (std::int64_t head = 0; head < saved.heads; ++head) {
        const Symbol& held = at(saved, unit, head);
        require(held.kind == Symbol::Kind::transition && held.begin == unit && held.head == head, "'transitions' row {} head {} holds {}",
                unit, head, held);
      }
    }
  }
};

}  // namespace

std::string check_states(const Plan& plan) {
  StatePlayer player(plan);
  try {
    player.play();
  } catch (const Failure& failure) {
    return player.where() + failure.what;
  } catch (const InvalidArgument& missing_slot) {
    return player.where() + missing_slot.what();
  }
  return {};
}

}  // namespace periplus::plan
