#include "parallel/plan/provenance_pieces.h"

#include <array>

#include <fmt/format.h>

namespace periplus::plan {
namespace {

constexpr std::array<std::string_view, 15> kCellNames{"q",     "k",           "v",           "dout", "out", "lse", "dlse", "sink",
                                                      "delta", "partial out", "partial lse", "dq",   "dk",  "dv",  "dsink"};
constexpr std::size_t kInputs = 8;

/// Whether `next` is the same history some rows further on.
bool continues(const Piece& piece, const Piece& next) {
  const bool rows = next.row0 == piece.row0 + piece.rows && next.origin_row == piece.origin_row + piece.rows;
  const bool heads = next.head0 == piece.head0 && next.heads == piece.heads && next.origin_head == piece.origin_head;
  const bool terms = next.terms == piece.terms && next.term_head == piece.term_head &&
                     (next.terms == nullptr || next.term_row == piece.term_row + piece.rows);
  return rows && heads && terms && next.cell == piece.cell && next.origin == piece.origin;
}

}  // namespace

std::string_view name_of(Cell cell) { return kCellNames[static_cast<std::size_t>(cell)]; }

std::optional<Cell> input_cell(std::string_view slot_name) {
  const auto end = kCellNames.begin() + kInputs, name = std::find(kCellNames.begin(), end, slot_name);
  if (name == end) return std::nullopt;
  return static_cast<Cell>(name - kCellNames.begin());
}

bool same_terms(const Piece& x, const Piece& y) {
  std::vector<Term> terms;
  for_terms(x, [&](const Term& term) { terms.push_back(term); });
  std::size_t count = 0;
  bool same = true;
  for_terms(y, [&](const Term& term) {
    same = same && count < terms.size() && terms[count] == term;
    ++count;
  });
  return same && count == terms.size();
}

void keep_outside(const Piece& piece, const View& hole, Pieces& kept) {
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

Pieces sums_like(const Pieces& identity, Cell cell, int record, bool contributes, TermStore& store) {
  Pieces sums = identity;
  for (Piece& piece : sums) {
    piece.cell = cell;
    piece.terms = contributes ? store.add({{record, piece.row0, piece.head0}, nullptr, 0, 0}) : nullptr;
    piece.term_row = piece.term_head = 0;
  }
  return sums;
}

Piece added(const Piece& held, const Piece& more, TermStore& store) {
  Piece sum = held;
  for_terms(more, [&](const Term& term) {
    sum.terms = store.add({term, sum.terms, sum.term_row, sum.term_head});
    sum.term_row = sum.term_head = 0;
  });
  return sum;
}

Pieces moved(Pieces pieces, std::span<const RowMove> moves) {
  if (moves.empty()) return pieces;
  std::ranges::stable_sort(pieces, {}, &Piece::row0);
  std::int64_t longest = 0;
  for (const Piece& piece : pieces) longest = std::max(longest, piece.rows);
  constexpr std::int64_t kAllHeads = std::int64_t{1} << 40;
  Pieces result;
  for (const RowMove& move : moves) {
    // Pieces that reach into the rows start no earlier than the longest is long; they may overlap where heads differ.
    auto piece = std::ranges::upper_bound(pieces, move.from - longest, {}, &Piece::row0);
    for (; piece != pieces.end() && piece->row0 < move.from + move.rows; ++piece) {
      std::optional<Piece> part = cut(*piece, move.from, move.rows, 0, kAllHeads);
      if (!part) continue;
      part->row0 += move.to - move.from;
      if (!result.empty() && continues(result.back(), *part)) {
        result.back().rows += part->rows;
      } else {
        result.push_back(*part);
      }
    }
  }
  return result;
}

void require_same_origin(const Piece& x, const Piece& y) {
  if (x.same_origin(y)) return;
  throw ProvenanceFailure{fmt::format("{} of rank {} row {} head {} meets {} of rank {} row {} head {}", name_of(x.cell), x.origin,
                                      x.origin_row, x.origin_head, name_of(y.cell), y.origin, y.origin_row, y.origin_head)};
}

}  // namespace periplus::plan
