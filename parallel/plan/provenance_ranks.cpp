#include "parallel/plan/provenance_ranks.h"

#include <optional>

#include <fmt/format.h>

namespace periplus::plan {

RankSlots::RankSlots(const Plan& plan, const RowOrders& orders, std::vector<std::vector<SlotPieces>>& slots, const Twins& twins)
    : plan_(plan), orders_(orders), all_(slots), twins_(twins) {
  for (const Program& program : plan.programs) {
    std::vector<SlotPieces>& own = all_[static_cast<std::size_t>(program.rank)];
    if (own.size() < program.slots.size()) own.resize(program.slots.size());
    look_at(program.rank);
    bind_inputs();
  }
}

void RankSlots::bind_inputs() {
  for (std::size_t i = 0; i < program_->slots.size(); ++i) {
    const Slot& slot = program_->slots[i];
    if (slot.role != Role::input) continue;
    const std::optional<Cell> known = input_cell(slot.name);
    if (!known) throw ProvenanceFailure{fmt::format("rank {}: input '{}' is not one the claim knows", rank_, slot.name)};
    const Cell cell = *known;
    const std::int64_t rows = cell == Cell::sink ? 1 : plan_.claim.layout.rows_of(rank_);
    const std::int64_t heads = has_key_rows(cell) ? plan_.claim.kv_heads : plan_.claim.q_heads;
    if (slot.rows != rows || slot.heads != heads) {
      throw ProvenanceFailure{fmt::format("rank {}: input '{}' has {} rows and {} heads, the claim says {} and {}", rank_, slot.name,
                                          slot.rows, slot.heads, rows, heads)};
    }
    if (slot.rows > 0 && mates_[i].leader == kNoSlot) slots_[i].hold({0, slot.rows, 0, slot.heads, cell, rank_, 0, 0});
  }
}

void RankSlots::append(const View& view, Pieces& found) {
  const Mates& mates = mates_of(view);
  const std::size_t before = found.size();
  View held = view;
  if (mates.behind > 0) held.slot = mates.first;
  const std::int64_t cells = of(held.slot).read(held, found);
  if (cells != view.rows * view.heads) {
    throw ProvenanceFailure{fmt::format("reads rows {}+{} of '{}', of which {} of {} cells were never written", view.row0, view.rows,
                                        program_->slot_of(view).name, view.rows * view.heads - cells, view.rows * view.heads)};
  }
  for (int i = 0; i < mates.behind; ++i) {
    for (Piece& piece : std::span(found).subspan(before)) {
      const std::optional<Cell> follower = follower_of(piece.cell);
      if (!follower) throw TwinsApart{};
      piece.cell = *follower;
    }
  }
}

void RankSlots::read_as(const View& view, Cell cell, Pieces& pieces) {
  pieces.clear();
  append(view, pieces);
  for (const Piece& piece : pieces) require_cell(view, piece, cell);
}

void RankSlots::require_cell(const View& view, const Piece& piece, Cell cell) const {
  if (piece.cell == cell) return;
  throw ProvenanceFailure{
      fmt::format("'{}' holds {} where {} is needed", program_->slot_of(view).name, name_of(piece.cell), name_of(cell))};
}

void RankSlots::require_like(const Pieces& wanted, const View& view, Cell cell) {
  read_as(view, cell, compared_);
  together(wanted, compared_, [this](const Piece& x, const Piece& y) { require_same_origin(x, y, orders_); });
}

}  // namespace periplus::plan
