#pragma once

#include <span>
#include <string>
#include <vector>

#include "parallel/plan/alike.h"
#include "parallel/plan/order.h"
#include "parallel/plan/plan.h"

namespace periplus::plan {

/// Part 3 of verify(), program by program: any two accesses to the same bytes, one of them not a read, are ordered by queues
/// and `after`. Keeps memory from one program to the next, which must have passed the check of form. Of programs that use their
/// slots alike one is looked at, and of the others just where they put their slots.
class RaceCheck {
 public:
  /// Before the first program of a plan.
  void begin() { known_.clear(); }
  /// Appends what it finds in the program of a rank. `programs` are those of the plan; up to that rank they were looked at before.
  void run(std::span<const Program> programs, Rank rank, std::vector<std::string>& failures);

 private:
  void find_lifetimes();
  /// Everything a step touches, absent operands too; messages joined where one goes on from another.
  std::span<const Access> accesses_of(StepId id) const;
  void check_operands(StepId id, std::span<const Access> accesses);
  void check_messages_apart(StepId id, std::span<const Access> messages);
  void check_order(StepId id, std::span<const Access> accesses);
  void check_all();
  void check_shared_bytes(const Timeline& timeline);
  void fail_shared(StepId id, const View& view);
  const Slot& slot_of(const View& view) const { return program_->slot_of(view); }

  /// What is known of a slot from the start.
  struct SlotUse {
    bool written = false;
    bool may_race = false;  ///< Uses of one queue are in its order, and reads do not race.
  };

  std::vector<std::string>* failures_ = nullptr;
  const Program* program_ = nullptr;
  Timeline* timeline_ = nullptr;   ///< Of the program.
  KnownPrograms<Timeline> known_;  ///< Of the plan, without races.
  std::vector<SlotUse> slots_;
  std::vector<Access> joined_, by_row_;  ///< Messages: of all exchanges, and of the one at hand.
  std::vector<Range> of_step_;           ///< In joined_.
  std::vector<std::size_t> by_offset_;   ///< Scratch slots.
  Histories histories_;
};

}  // namespace periplus::plan
