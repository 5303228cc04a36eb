#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/plan/plan.h"
#include "parallel/plan/row_orders.h"
#include "parallel/plan/store.h"

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

/// Its rows are rows of the packed sequence: all but sinks.
inline bool has_sequence_rows(Cell cell) { return cell != Cell::sink && cell != Cell::dsink; }

/// Thrown while playing, caught by check_provenance.
struct ProvenanceFailure {
  std::string what;
};

/// One contribution to a sum: what a recorded attend step computed, from row and head of its query or key view on. A whole
/// one stands for several that together are all that the mask demands of the rows at hand, with the heads of the record.
struct Term {
  int record;
  std::int64_t row, head;
  bool whole = false;
  friend bool operator==(const Term&, const Term&) = default;
};

/// A list of terms that other lists may go on from; those of `rest` are shifted by its row and head.
struct TermNode {
  Term term;
  const TermNode* rest;
  std::int64_t rest_row, rest_head;
};
using TermStore = Store<TermNode>;

/// A rectangle of equal history. Its rows are those of an order of RowOrders, from origin_row on: nearly always of the
/// rank of that number. Copies share the list of terms, shifted by rows and heads of their own.
struct Piece {
  std::int64_t row0, rows, head0, heads;  ///< Where it lies: in a slot, or in a view once read.
  Cell cell;
  int origin;
  std::int64_t origin_row, origin_head;
  const TermNode* terms = nullptr;
  std::int64_t term_row = 0, term_head = 0;

  bool covers(std::int64_t first_row, std::int64_t row_count, std::int64_t first_head, std::int64_t head_count) const {
    return row0 == first_row && rows == row_count && head0 == first_head && heads == head_count;
  }
};
/// Walks the terms of a piece, rows and heads counted from the piece's own.
class TermWalk {
 public:
  explicit TermWalk(const Piece& piece) : node_(piece.terms), row_(piece.term_row), head_(piece.term_head) {}
  bool done() const noexcept { return node_ == nullptr; }
  Term term() const noexcept {
    const Term& term = node_->term;
    return {term.record, term.whole ? 0 : term.row + row_, term.head + head_, term.whole};
  }
  void next() noexcept {
    row_ += node_->rest_row, head_ += node_->rest_head;
    node_ = node_->rest;
  }

 private:
  const TermNode* node_;
  std::int64_t row_, head_;
};
/// Calls fn(term) for every term of a piece.
template <class Fn>
void for_terms(const Piece& piece, Fn&& fn) {
  for (TermWalk walk(piece); !walk.done(); walk.next()) fn(walk.term());
}
/// Whether both hold the same terms in the same order.
bool same_terms(const Piece& x, const Piece& y);
using Pieces = std::vector<Piece>;

/// The part of a piece inside a rectangle, in the coordinates of the piece; nothing if they do not meet.
inline std::optional<Piece> cut(const Piece& piece, std::int64_t row0, std::int64_t rows, std::int64_t head0, std::int64_t heads) {
  const std::int64_t r0 = std::max(piece.row0, row0), r1 = std::min(piece.row0 + piece.rows, row0 + rows);
  const std::int64_t h0 = std::max(piece.head0, head0), h1 = std::min(piece.head0 + piece.heads, head0 + heads);
  if (r0 >= r1 || h0 >= h1) return std::nullopt;
  Piece part = piece;
  part.row0 = r0, part.rows = r1 - r0, part.head0 = h0, part.heads = h1 - h0;
  part.origin_row += r0 - piece.row0, part.origin_head += h0 - piece.head0;
  part.term_row += r0 - piece.row0, part.term_head += h0 - piece.head0;
  return part;
}
/// Whether a piece lies in a view of its slot.
inline bool within(const Piece& piece, const View& view) {
  return view.row0 <= piece.row0 && piece.row0 + piece.rows <= view.row0 + view.rows && view.head0 <= piece.head0 &&
         piece.head0 + piece.heads <= view.head0 + view.heads;
}
/// Appends what remains of a piece outside a view of its slot.
void keep_outside(const Piece& piece, const View& hole, Pieces& kept);
/// Makes `sums` pieces with the rows of `identity`, each a sum of one term of `record` (or of none).
void sums_like(const Pieces& identity, Cell cell, int record, bool contributes, TermStore& store, Pieces& sums);
/// Adds a piece to one on the same rectangle.
void add_to(Piece& sum, const Piece& more, TermStore& store);
/// The pieces after the moves, if there are any, with as few names as RowOrders finds.
Pieces moved(Pieces pieces, std::span<const RowMove> moves, RowOrders& orders);
/// Whether both are the same rows and heads.
bool same_origin(const Piece& x, const Piece& y, const RowOrders& orders);
/// Throws ProvenanceFailure unless they are.
void require_same_origin(const Piece& x, const Piece& y, const RowOrders& orders);

/// Calls fn(part of a, part of b) for every rectangle on which both are in one piece; they cover the same view.
template <class Fn>
void together(const Pieces& a, const Pieces& b, Fn&& fn) {
  // Nearly always both were cut alike.
  const auto alike = [](const Piece& x, const Piece& y) { return x.covers(y.row0, y.rows, y.head0, y.heads); };
  if (std::equal(a.begin(), a.end(), b.begin(), b.end(), alike)) {
    for (std::size_t i = 0; i < a.size(); ++i) fn(a[i], b[i]);
    return;
  }
  for (const Piece& x : a) {
    for (const Piece& y : b) {
      if (const std::optional<Piece> of_x = cut(x, y.row0, y.rows, y.head0, y.heads)) fn(*of_x, *cut(y, x.row0, x.rows, x.head0, x.heads));
    }
  }
}

}  // namespace periplus::plan
