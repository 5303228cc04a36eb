#pragma once

#include <cstdint>
#include <span>

#include "parallel/plan/provenance_pieces.h"

namespace periplus::plan {

/// What a slot holds: pieces that do not overlap.
class SlotPieces {
 public:
  void clear() { held_.clear(); }
  void hold(const Piece& piece) { held_.push_back(piece); }
  /// Appends the pieces of a view, in its coordinates. Returns how many of its cells are defined.
  std::int64_t read(const View& view, Pieces& found) const;
  /// Replaces what the view held; `pieces` are in its coordinates.
  void write(const View& view, std::span<const Piece> pieces);
  /// The piece that is just the view, if there is one.
  Piece* only(const View& view);

 private:
  Pieces::const_iterator exactly(const View& view) const;

  Pieces held_;
};

}  // namespace periplus::plan
