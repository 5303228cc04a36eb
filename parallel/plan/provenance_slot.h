#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "parallel/plan/provenance_pieces.h"

namespace periplus::plan {

/// What a slot holds: pieces that do not overlap.
class SlotPieces {
 public:
  void clear() {
    held_.clear();
    longest_ = 0, next_ = 0;
  }
  /// Takes in a piece where there is none, so many rows and heads further on than it says.
  void hold(const Piece& piece, std::int64_t rows_on = 0, std::int64_t heads_on = 0);
  /// Appends the pieces of a view, in its coordinates. Returns how many of its cells are defined.
  std::int64_t read(const View& view, Pieces& found) const;
  /// Replaces what the view held; `pieces` are in its coordinates.
  void write(const View& view, std::span<const Piece> pieces);
  /// The piece that is just the view, if there is one.
  Piece* only(const View& view) {
    const std::optional<std::size_t> place = find(view);
    return place ? &held_[*place] : nullptr;
  }

 private:
  std::optional<std::size_t> find(const View& view) const;
  /// All pieces that may meet a view.
  std::span<const Piece> near(const View& view) const;

  Pieces held_;                   ///< By rising row, then head.
  std::int64_t longest_ = 0;      ///< No piece has more rows.
  mutable std::size_t next_ = 0;  ///< Where the view asked for next may lie.
};

}  // namespace periplus::plan
