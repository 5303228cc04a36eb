#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "parallel/plan/provenance_pieces.h"

namespace periplus::plan {

/// What a slot holds: pieces that do not overlap.
class SlotPieces {
 public:
  void clear() {
    held_.clear();
    end_ = next_ = 0;
  }
  void hold(const Piece& piece) {
    held_.push_back(piece);
    end_ = std::max(end_, piece.row0 + piece.rows);
  }
  /// Appends the pieces of a view, in its coordinates. Returns how many of its cells are defined.
  std::int64_t read(const View& view, Pieces& found) const;
  /// Replaces what the view held; `pieces` are in its coordinates.
  void write(const View& view, std::span<const Piece> pieces);
  /// The piece that is just the view, if there is one.
  Piece* only(const View& view);

 private:
  Pieces::const_iterator exactly(const View& view) const;

  /// Whether a view begins behind all pieces.
  bool beyond_all(const View& view) const { return view.row0 >= end_; }

  Pieces held_;
  std::int64_t end_ = 0;          ///< No piece reaches further.
  mutable std::size_t next_ = 0;  ///< Where the view asked for next may lie.
};

}  // namespace periplus::plan
