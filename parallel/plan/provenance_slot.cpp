#include "parallel/plan/provenance_slot.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace periplus::plan {
namespace {

bool meets(const Piece& piece, const View& view) {
  return piece.row0 < view.row0 + view.rows && view.row0 < piece.row0 + piece.rows && piece.head0 < view.head0 + view.heads &&
         view.head0 < piece.head0 + piece.heads;
}

std::pair<std::int64_t, std::int64_t> place_of(const Piece& piece) { return {piece.row0, piece.head0}; }

}  // namespace

void SlotPieces::hold(const Piece& piece, std::int64_t rows_on, std::int64_t heads_on) {
  const std::pair place(piece.row0 + rows_on, piece.head0 + heads_on);
  const bool last = held_.empty() || place_of(held_.back()) < place;
  const auto behind = last ? held_.end() : std::ranges::upper_bound(held_, place, {}, place_of);
  const auto held = held_.insert(behind, piece);
  std::tie(held->row0, held->head0) = place;
  longest_ = std::max(longest_, piece.rows);
}

std::span<const Piece> SlotPieces::near(const View& view) const {
  if (held_.empty() || view.row0 >= held_.back().row0 + longest_) return {};  // mostly slots fill from the front
  const auto begin = std::ranges::upper_bound(held_, view.row0 - longest_, {}, &Piece::row0);
  return {begin, std::lower_bound(begin, held_.end(), view.row0 + view.rows,
                                  [](const Piece& piece, std::int64_t row) { return piece.row0 < row; })};
}

std::int64_t SlotPieces::read(const View& view, Pieces& found) const {
  // Nearly always a view is read as it was written.
  if (const std::optional<std::size_t> place = find(view)) {
    Piece& part = found.emplace_back(held_[*place]);
    part.row0 = part.head0 = 0;
    return view.rows * view.heads;
  }
  std::int64_t cells = 0;
  for (const Piece& piece : near(view)) {
    std::optional<Piece> part = cut(piece, view.row0, view.rows, view.head0, view.heads);
    if (!part) continue;
    part->row0 -= view.row0;
    part->head0 -= view.head0;
    cells += part->rows * part->heads;
    found.push_back(*part);
  }
  return cells;
}

void SlotPieces::write(const View& view, std::span<const Piece> pieces) {
  // Nearly always a view is written as it was before.
  if (Piece* const before = pieces.size() == 1 ? only(view) : nullptr) {
    *before = pieces.front();
    before->row0 += view.row0, before->head0 += view.head0;
    return;
  }
  if (held_.size() == 1 && within(held_.front(), view)) held_.clear();
  if (const std::span<const Piece> old = near(view); !old.empty()) {
    Pieces rest;
    const auto begin = held_.begin() + (old.data() - held_.data()), end = begin + std::ssize(old);
    const auto kept = std::remove_if(begin, end, [&](const Piece& piece) {
      const bool replaced = meets(piece, view);
      if (replaced) keep_outside(piece, view, rest);
      return replaced;
    });
    held_.erase(kept, end);
    for (const Piece& piece : rest) hold(piece);
  }
  for (const Piece& piece : pieces) hold(piece, view.row0, view.head0);
}

std::optional<std::size_t> SlotPieces::find(const View& view) const {
  if (held_.empty() || view.row0 > held_.back().row0 || view.row0 < held_.front().row0) return {};
  const auto covers = [&](const Piece& p) { return p.covers(view.row0, view.rows, view.head0, view.heads); };
  // Views follow each other as they did when they were written.
  std::size_t place = next_ < held_.size() ? next_ : 0;
  if (!covers(held_[place])) {
    const auto found = std::ranges::lower_bound(held_, std::pair(view.row0, view.head0), {}, place_of);
    if (found == held_.end() || !covers(*found)) return {};
    place = static_cast<std::size_t>(found - held_.begin());
  }
  next_ = place + 1;
  return place;
}

}  // namespace periplus::plan
