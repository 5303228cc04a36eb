#include "parallel/plan/provenance_pieces.h"

#include <array>
#include <numeric>

#include <fmt/format.h>

namespace periplus::plan {
namespace {

constexpr std::array<std::string_view, 15> kCellNames{"q",     "k",           "v",           "dout", "out", "lse", "dlse", "sink",
                                                      "delta", "partial out", "partial lse", "dq",   "dk",  "dv",  "dsink"};
constexpr std::size_t kInputs = 8;

/// Whether nothing but their rows, which RowOrders can move, tells the pieces apart.
bool differ_in_rows_only(const Piece& x, const Piece& y) {
  const bool heads = x.head0 == y.head0 && x.heads == y.heads && x.origin_head == y.origin_head;
  return heads && x.cell == y.cell && x.terms == y.terms && x.term_head == y.term_head;
}
bool rows_can_move_alone(const Piece& piece) {
  return has_sequence_rows(piece.cell) && (piece.terms == nullptr || (piece.terms->term.whole && piece.terms->rest == nullptr));
}

/// Pieces by rising row, part by part.
void move_each(const Pieces& pieces, std::span<const RowMove> moves, Pieces& result) {
  std::int64_t longest = 0;
  for (const Piece& piece : pieces) longest = std::max(longest, piece.rows);
  constexpr std::int64_t kAllHeads = std::int64_t{1} << 40;
  for (const RowMove& move : without_strides(moves)) {
    // Pieces that reach into the rows start no earlier than the longest is long; they may overlap where heads differ.
    auto piece = std::ranges::upper_bound(pieces, move.from - longest, {}, &Piece::row0);
    for (; piece != pieces.end() && piece->row0 < move.from + move.rows; ++piece) {
      if (std::optional<Piece> part = cut(*piece, move.from, move.rows, 0, kAllHeads)) {
        part->row0 += move.to - move.from;
        result.push_back(*part);
      }
    }
  }
}

std::int64_t total_rows(std::span<const RowMove> moves) {
  return std::accumulate(moves.begin(), moves.end(), std::int64_t{0},
                         [](std::int64_t sum, const RowMove& move) { return sum + move.rows; });
}

/// Pieces by rising row that differ in their rows only.
void move_together(const Pieces& pieces, std::span<const RowMove> moves, RowOrders& orders, Pieces& result) {
  std::vector<NamedRows> rows;
  std::int64_t next = 0;
  bool gapless = true;
  for (const Piece& piece : pieces) {
    gapless = gapless && piece.row0 == next;
    next = piece.row0 + piece.rows;
    rows.push_back({piece.row0, piece.rows, piece.origin, piece.origin_row});
  }
  if (!gapless || next != total_rows(moves)) return move_each(pieces, moves, result);
  for (const NamedRows& part : orders.moved(rows, moves)) {
    Piece piece = pieces.front();
    piece.row0 = part.at, piece.rows = part.rows, piece.origin = part.order, piece.origin_row = part.first;
    result.push_back(piece);
  }
}

}  // namespace

std::string_view name_of(Cell cell) { return kCellNames[static_cast<std::size_t>(cell)]; }

std::optional<Cell> input_cell(std::string_view slot_name) {
  const auto end = kCellNames.begin() + kInputs, name = std::find(kCellNames.begin(), end, slot_name);
  if (name == end) return std::nullopt;
  return static_cast<Cell>(name - kCellNames.begin());
}

bool same_terms(const Piece& x, const Piece& y) {
  TermWalk of_x(x), of_y(y);
  for (; !of_x.done() && !of_y.done(); of_x.next(), of_y.next()) {
    if (of_x.term() != of_y.term()) return false;
  }
  return of_x.done() && of_y.done();
}

void keep_outside(const Piece& piece, const View& hole, Pieces& kept) {
  if (within(piece, hole)) return;
  const auto keep = [&](std::int64_t r0, std::int64_t r1, std::int64_t h0, std::int64_t h1) {
    if (std::optional<Piece> part = cut(piece, r0, r1 - r0, h0, h1 - h0)) kept.push_back(std::move(*part));
  };
  constexpr std::int64_t kFar = std::int64_t{1} << 40;
  const std::int64_t r0 = hole.row0, r1 = hole.row0 + hole.rows;
  keep(-kFar, r0, -kFar, kFar);
  keep(r1, kFar, -kFar, kFar);
  keep(r0, r1, -kFar, hole.head0);
  keep(r0, r1, hole.head0 + hole.heads, kFar);
}

void sums_like(const Pieces& identity, Cell cell, int record, bool contributes, TermStore& store, Pieces& sums) {
  sums.assign(identity.begin(), identity.end());
  for (Piece& piece : sums) {
    piece.cell = cell;
    piece.terms = contributes ? store.add({{record, piece.row0, piece.head0}, nullptr, 0, 0}) : nullptr;
    piece.term_row = piece.term_head = 0;
  }
}

void add_to(Piece& sum, const Piece& more, TermStore& store) {
  for_terms(more, [&](const Term& term) {
    sum.terms = store.add({term, sum.terms, sum.term_row, sum.term_head});
    sum.term_row = sum.term_head = 0;
  });
}

Pieces moved(Pieces pieces, std::span<const RowMove> moves, RowOrders& orders) {
  if (moves.empty()) return pieces;
  std::ranges::stable_sort(pieces, {}, &Piece::row0);
  Pieces result, alike;
  while (!pieces.empty()) {
    const Piece first = pieces.front();
    const bool alone = rows_can_move_alone(first);
    alike.clear();
    std::erase_if(pieces, [&](const Piece& piece) {
      const bool taken = alone ? differ_in_rows_only(first, piece) : !rows_can_move_alone(piece);
      if (taken) alike.push_back(piece);
      return taken;
    });
    alone ? move_together(alike, moves, orders, result) : move_each(alike, moves, result);
  }
  std::ranges::sort(result, {}, &Piece::row0);  // as slots hold them
  return result;
}

bool same_origin(const Piece& x, const Piece& y, const RowOrders& orders) {
  if (x.origin_head != y.origin_head) return false;
  if (x.origin == y.origin) return x.origin_row == y.origin_row;
  return has_sequence_rows(x.cell) && x.rows == y.rows && orders.same_rows(x.origin, x.origin_row, y.origin, y.origin_row, x.rows);
}

void require_same_origin(const Piece& x, const Piece& y, const RowOrders& orders) {
  if (same_origin(x, y, orders)) return;
  throw ProvenanceFailure{fmt::format("{} of rank {} row {} head {} meets {} of rank {} row {} head {}", name_of(x.cell), x.origin,
                                      x.origin_row, x.origin_head, name_of(y.cell), y.origin, y.origin_row, y.origin_head)};
}

}  // namespace periplus::plan
