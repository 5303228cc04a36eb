#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/plan/plan.h"

/// Symbols that verify's provenance check plays with in place of numbers.
namespace periplus::plan {

/// What a cell holds. The first eight are inputs, by slot name.
enum class Cell { q, k, v, dout, out, lse, dlse, sink, delta, state_out, state_lse, dq, dk, dv, dsink };
std::string_view name_of(Cell cell);
/// The input cell of a slot name, if there is one.
std::optional<Cell> input_cell(std::string_view slot_name);
/// Rows are keys; all other cells have query rows.
inline bool has_key_rows(Cell cell) { return cell == Cell::k || cell == Cell::v || cell == Cell::dk || cell == Cell::dv; }
/// Sums over queries or keys, which may be partial.
inline bool is_sum(Cell cell) {
  return cell == Cell::state_out || cell == Cell::state_lse || cell == Cell::dq || cell == Cell::dk || cell == Cell::dv;
}

/// Thrown while playing, caught by check_provenance.
struct ProvenanceFailure {
  std::string what;
};

/// One contribution to a sum: what a recorded attend step computed, from row and head of its query or key view on.
struct Term {
  int record;
  std::int64_t row, head;
  friend bool operator==(const Term&, const Term&) = default;
};

/// A rectangle of equal history. Its rows and heads are those of rank `origin`, from origin_row and origin_head on; so
/// global rows follow from the layout. Terms are shared between copies, their rows and heads shifted by the piece's own.
struct Piece {
  std::int64_t row0, rows, head0, heads;  ///< Where it lies: in a slot, or in a view once read.
  Cell cell;
  Rank origin;
  std::int64_t origin_row, origin_head;
  std::shared_ptr<const std::vector<Term>> shared_terms = {};
  std::int64_t term_row = 0, term_head = 0;

  bool same_origin(const Piece& other) const {
    return origin == other.origin && origin_row == other.origin_row && origin_head == other.origin_head;
  }
  std::vector<Term> terms() const;
};
using Pieces = std::vector<Piece>;

/// The part of a piece inside a rectangle, in the coordinates of the piece; nothing if they do not meet.
std::optional<Piece> cut(const Piece& piece, std::int64_t row0, std::int64_t rows, std::int64_t head0, std::int64_t heads);
/// Appends what remains of a piece outside a view of its slot.
void keep_outside(const Piece& piece, const View& hole, Pieces& kept);
/// Pieces with the rows of `identity`, each a sum of one term of `record` (or of none).
Pieces sums_like(const Pieces& identity, Cell cell, int record, bool contributes);
/// The sum of two pieces on the same rectangle.
Piece added(const Piece& held, const Piece& more);
/// Throws ProvenanceFailure unless both are the same rows and heads of the same rank.
void require_same_origin(const Piece& x, const Piece& y);

/// Calls fn(part of a, part of b) for every rectangle on which both are in one piece; they cover the same view.
template <class Fn>
void together(const Pieces& a, const Pieces& b, Fn&& fn) {
  for (const Piece& x : a) {
    for (const Piece& y : b) {
      if (const std::optional<Piece> of_x = cut(x, y.row0, y.rows, y.head0, y.heads)) fn(*of_x, *cut(y, x.row0, x.rows, x.head0, x.heads));
    }
  }
}

}  // namespace periplus::plan
