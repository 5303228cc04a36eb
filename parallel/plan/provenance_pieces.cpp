#include "parallel/plan/provenance_pieces.h"

#include <array>

#include <fmt/format.h>

namespace periplus::plan {
namespace {

constexpr std::array<std::string_view, 15> kCellNames{"q",     "k",           "v",           "dout", "out", "lse", "dlse", "sink",
                                                      "delta", "partial out", "partial lse", "dq",   "dk",  "dv",  "dsink"};
constexpr std::size_t kInputs = 8;

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

void require_same_origin(const Piece& x, const Piece& y) {
  if (x.same_origin(y)) return;
  throw ProvenanceFailure{fmt::format("{} of rank {} row {} head {} meets {} of rank {} row {} head {}", name_of(x.cell), x.origin,
                                      x.origin_row, x.origin_head, name_of(y.cell), y.origin, y.origin_row, y.origin_head)};
}

}  // namespace periplus::plan
