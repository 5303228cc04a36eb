#include "parallel/plan/provenance_slot.h"

#include <algorithm>

namespace periplus::plan {
namespace {

bool meets(const Piece& piece, const View& view) {
  return piece.row0 < view.row0 + view.rows && view.row0 < piece.row0 + piece.rows && piece.head0 < view.head0 + view.heads &&
         view.head0 < piece.head0 + piece.heads;
}

}  // namespace

std::int64_t SlotPieces::read(const View& view, Pieces& found) const {
  // Nearly always a view is read as it was written.
  if (const auto piece = exactly(view); piece != held_.end()) {
    Piece& part = found.emplace_back(*piece);
    part.row0 = part.head0 = 0;
    return view.rows * view.heads;
  }
  std::int64_t cells = 0;
  const std::int64_t all = view.rows * view.heads;
  for (auto piece = held_.begin(); piece != held_.end() && cells < all; ++piece) {
    std::optional<Piece> part = cut(*piece, view.row0, view.rows, view.head0, view.heads);
    if (!part) continue;
    part->row0 -= view.row0;
    part->head0 -= view.head0;
    cells += part->rows * part->heads;
    found.push_back(*part);
  }
  return cells;
}

void SlotPieces::write(const View& view, std::span<const Piece> pieces) {
  const auto moved_in = [&](Piece piece) {
    piece.row0 += view.row0;
    piece.head0 += view.head0;
    return piece;
  };
  // Nearly always a view is written as it was before.
  if (Piece* const before = pieces.size() == 1 ? only(view) : nullptr) {
    *before = moved_in(pieces.front());
    return;
  }
  if (!beyond_all(view)) {
    Pieces rest;
    std::erase_if(held_, [&](const Piece& piece) {
      const bool replaced = meets(piece, view);
      if (replaced) keep_outside(piece, view, rest);
      return replaced;
    });
    held_.insert(held_.end(), rest.begin(), rest.end());
  }
  for (const Piece& piece : pieces) hold(moved_in(piece));
}

Pieces::const_iterator SlotPieces::exactly(const View& view) const {
  if (beyond_all(view)) return held_.end();
  const auto covers = [&](const Piece& p) { return p.covers(view.row0, view.rows, view.head0, view.heads); };
  // Views follow each other as they did when they were written.
  const auto start = held_.begin() + static_cast<std::ptrdiff_t>(next_ < held_.size() ? next_ : 0);
  auto piece = std::find_if(start, held_.end(), covers);
  if (piece == held_.end()) {
    piece = std::find_if(held_.begin(), start, covers);
    if (piece == start) return held_.end();
  }
  next_ = static_cast<std::size_t>(piece - held_.begin()) + 1;
  return piece;
}

Piece* SlotPieces::only(const View& view) {
  const auto piece = exactly(view);
  return piece == held_.end() ? nullptr : &held_[static_cast<std::size_t>(piece - held_.begin())];
}

}  // namespace periplus::plan
