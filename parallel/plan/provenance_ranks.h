#pragma once

#include <span>
#include <vector>

#include "parallel/plan/plan.h"
#include "parallel/plan/provenance_pieces.h"
#include "parallel/plan/provenance_slot.h"
#include "parallel/plan/provenance_twins.h"

namespace periplus::plan {

/// What the slots of all ranks hold while a plan is played, seen from one rank at a time. Of twins it keeps what leads.
class RankSlots {
 public:
  /// Binds the inputs. `slots`, by rank and slot, are empty; rows are grown where a program has more.
  RankSlots(const Plan& plan, const RowOrders& orders, std::vector<std::vector<SlotPieces>>& slots, const Twins& twins);

  void look_at(Rank rank) {
    rank_ = rank;
    program_ = &plan_.programs[static_cast<std::size_t>(rank)];
    mates_ = twins_.of(rank);
    slots_ = all_[static_cast<std::size_t>(rank)];
  }
  Rank rank() const { return rank_; }
  const Program& program() const { return *program_; }
  std::span<const Mates> mates() const { return mates_; }
  const Mates& mates_of(const View& view) const { return mates_[static_cast<std::size_t>(view.slot)]; }

  /// Appends the pieces of a view, in its coordinates. All of it must be defined.
  void append(const View& view, Pieces& found);
  /// The pieces of a view in place of what `pieces` held. All of it must be `cell`.
  void read_as(const View& view, Cell cell, Pieces& pieces);
  void require_cell(const View& view, const Piece& piece, Cell cell) const;
  /// Every part of the view is `cell` and the same rows and heads as `wanted`.
  void require_like(const Pieces& wanted, const View& view, Cell cell);
  /// Replaces what a view held. Whoever writes to a twin sees to the other: `require_alone` and `as_one` say if that is needed.
  void write(const View& view, std::span<const Piece> pieces) { of(view.slot).write(view, pieces); }
  /// The piece that is just the view, if there is one.
  Piece* only(const View& view) { return of(view.slot).only(view); }

  bool are_twins(const View& leader, const View& follower) const { return plan::are_twins(mates_, leader, follower); }
  /// How many twins follow a slot, one behind the other.
  std::size_t twins_behind(SlotId slot) const {
    std::size_t count = 0;
    while ((slot = mates_[static_cast<std::size_t>(slot)].follower) != kNoSlot) ++count;
    return count;
  }
  /// Whether to write the first as one writes the second is to write both: they are twins, and have no others. Else neither may
  /// have a twin.
  bool as_one(const Access& first, const Access& second) const {
    if (first.mode == second.mode && are_twins(first.view, second.view) && mates_of(first.view).leads_all() &&
        mates_of(second.view).follower == kNoSlot)
      return true;
    require_alone(first.view), require_alone(second.view);
    return false;
  }
  void require_alone(const View& view) const {
    if (!mates_of(view).alone()) throw TwinsApart{};
  }

 private:
  SlotPieces& of(SlotId slot) { return slots_[static_cast<std::size_t>(slot)]; }
  void bind_inputs();

  const Plan& plan_;
  const RowOrders& orders_;
  std::vector<std::vector<SlotPieces>>& all_;
  const Twins& twins_;
  Rank rank_ = 0;
  const Program* program_ = nullptr;
  std::span<const Mates> mates_;
  std::span<SlotPieces> slots_;
  Pieces compared_;
};

}  // namespace periplus::plan
