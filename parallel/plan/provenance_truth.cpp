#include "parallel/plan/provenance_truth.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace periplus::plan {
namespace {

/// The rows of a run that lie in [begin, end).
StridedRows clip(const StridedRows& run, std::int64_t begin, std::int64_t end) {
  const auto steps = [&](std::int64_t to) {
    return std::clamp((to - run.first + run.stride - 1) / run.stride, std::int64_t{0}, run.count);
  };
  const std::int64_t first = begin > run.first ? steps(begin) : 0, last = end > run.first ? steps(end) : 0;
  return {run.first + first * run.stride, last - first, run.stride};
}

/// Of rows of something that has a digest or number.
std::uint64_t digest_of(std::uint64_t of, std::int64_t row, std::int64_t rows, bool keys) {
  return Digest().add(of).add(row).add(2 * rows + (keys ? 1 : 0)).value();
}

/// The first piece that ends behind a row. Pieces of all heads do not overlap and lie by rising row.
std::span<const Piece>::iterator first_behind(std::span<const Piece> pieces, std::int64_t row) {
  return std::ranges::upper_bound(pieces, row, {}, [](const Piece& piece) { return piece.row0 + piece.rows; });
}

/// fn(query piece, key piece) for those that a band may meet.
template <class Fn>
void for_pieces(const AttendGeometry& r, const Band& band, Fn&& fn) {
  const auto keys = first_behind(r.k, band.k0);
  for (auto x = first_behind(r.q, band.q0); x != r.q.end() && x->row0 < band.q1; ++x) {
    for (auto y = keys; y != r.k.end() && y->row0 < band.k1; ++y) fn(*x, *y);
  }
}

AttendGeometry::Parts& parts_of(const AttendGeometry& of) {
  if (!of.parts) of.parts = std::make_unique<AttendGeometry::Parts>();
  return *of.parts;
}

/// Query head of head `head` of the queries or keys of a record.
std::int64_t query_head(const AttendRecord& r, bool keys, std::int64_t head) { return *r.first_head + head * (keys ? r.group : 1); }

}  // namespace

Truth::Truth(const Claim& claim, const RowOrders& orders, KnownPairs& lasting)
    : claim_(claim),
      orders_(orders),
      group_(claim.q_heads / claim.kv_heads),
      fingerprint_(claim.layout.tokens(), claim.q_heads, 0x9e3779b97f4a7c15u),
      lasting_(lasting) {}

std::uint64_t Truth::demanded(const Piece& piece) const {
  const std::int64_t per_row_head = has_key_rows(piece.cell) ? group_ : 1;
  return field::multiply(demanded_pairs(piece), fingerprint_.heads(piece.origin_head * per_row_head, piece.heads * per_row_head));
}

std::uint64_t Truth::demanded_pairs(const Piece& piece) const {
  const bool keys = has_key_rows(piece.cell);
  const std::uint64_t key = digest_of(static_cast<std::uint64_t>(piece.origin), piece.origin_row, piece.rows, keys);
  const auto [known, is_new] = (orders_.is_rank(piece.origin) ? lasting_ : of_plan_).demanded.find_or_add(key);
  if (!is_new) return *known;
  std::uint64_t sum = 0;
  orders_.for_runs(piece.origin, piece.origin_row, piece.rows, [&](std::int64_t, const StridedRows& run) {
    for (const Band& band : claim_.mask.bands()) {
      const std::int64_t begin = keys ? band.k0 : band.q0, end = keys ? band.k1 : band.q1;
      if (begin > run.first + (run.count - 1) * run.stride || end <= run.first) continue;  // most, and cheaper than to clip
      const StridedRows own = clip(run, begin, end);
      const StridedRows other = keys ? StridedRows{band.q0, band.q1 - band.q0, 1} : StridedRows{band.k0, band.k1 - band.k0, 1};
      if (own.count > 0)
        sum = field::add(sum, keys ? fingerprint_.band(other, own, band.lo, band.hi) : fingerprint_.band(own, other, band.lo, band.hi));
    }
  });
  return *known = sum;
}

/// Fingerprint of the pairs of one band between one query piece and one key piece, in global rows.
std::uint64_t Truth::band_between(const Band& band, const Piece& q, const Piece& k) const {
  const std::int64_t q0 = std::max(band.q0, q.row0), q1 = std::min(band.q1, q.row0 + q.rows);
  const std::int64_t k0 = std::max(band.k0, k.row0), k1 = std::min(band.k1, k.row0 + k.rows);
  if (q0 >= q1 || k0 >= k1) return 0;
  std::uint64_t sum = 0;
  orders_.for_runs(q.origin, q.origin_row + q0 - q.row0, q1 - q0, [&](std::int64_t q_begin, const StridedRows& q_run) {
    const std::int64_t q_view = q_begin - q.origin_row + q.row0;
    orders_.for_runs(k.origin, k.origin_row + k0 - k.row0, k1 - k0, [&](std::int64_t k_begin, const StridedRows& k_run) {
      const std::int64_t k_view = k_begin - k.origin_row + k.row0;
      // The band speaks of view rows: in runs of spacing s, lo <= u - t <= hi becomes global bounds around the two first rows.
      const auto add_run = [&](const StridedRows& a, std::int64_t a_view, const StridedRows& b) {
        const std::int64_t stride = a.count > 1 ? a.stride : b.stride;
        const std::int64_t shift = b.first - a.first, view_shift = k_view - a_view;
        const auto bound = [&](std::int64_t v) {
          return v <= -kUnbounded / 2 || v >= kUnbounded / 2 ? v : (v - view_shift) * stride + shift;
        };
        sum = field::add(sum, fingerprint_.band({a.first, a.count, stride}, {b.first, b.count, stride}, bound(band.lo), bound(band.hi)));
      };
      if (q_run.stride == k_run.stride || q_run.count == 1 || k_run.count == 1) {
        add_run(q_run, q_view, k_run);
      } else {
        for (std::int64_t t = 0; t < q_run.count; ++t) add_run({q_run.first + t * q_run.stride, 1, 1}, q_view + t, k_run);
      }
    });
  });
  return sum;
}

std::uint64_t Truth::contributed(const Piece& piece, const Term& term, const AttendRecord& r) const {
  if (!r.first_head) return contributed_by_pieces(piece, term, r);
  const bool keys = has_key_rows(piece.cell);
  const std::uint64_t pairs = term.whole ? demanded_pairs(piece) : contributed_pairs(piece, term, r);
  return field::multiply(pairs, fingerprint_.heads(query_head(r, keys, term.head), piece.heads * (keys ? r.group : 1)));
}

bool Truth::complete(const Pieces& sums, const AttendRecords& records) const {
  std::vector<Share>& shares = shares_;
  shares.clear();
  std::uint64_t wanted = 0, sum = 0;
  for (const Piece& piece : sums) {
    wanted = field::add(wanted, demanded(piece));
    for_terms(piece, [&](const Term& term) { shares.push_back({&piece, term}); });
  }
  // Terms of one piece have no others that go on from their rows.
  if (sums.size() == 1) {
    for (const Share& share : shares) sum = field::add(sum, contributed(*share.piece, share.term, records[share.term.record]));
    return sum == wanted;
  }
  std::sort(shares.begin(), shares.end());
  for (auto share = shares.begin(); share != shares.end();) {
    Piece rows = *share->piece;
    auto next = share + 1;
    for (; next != shares.end() && !share->term.whole; ++next) {
      Share follows{&rows, share->term};
      follows.term.row += rows.rows;
      if (*next != follows) break;
      rows.rows += next->piece->rows;
    }
    sum = field::add(sum, contributed(rows, share->term, records[share->term.record]));
    share = next;
  }
  return sum == wanted;
}

std::optional<Term> Truth::whole(const Piece& piece, const AttendRecords& records) const {
  const bool keys = has_key_rows(piece.cell);
  std::optional<Term> result;
  std::uint64_t sum = 0;
  bool alike = true;
  for_terms(piece, [&](const Term& term) {
    const AttendRecord& r = records[term.record];
    alike = alike && r.first_head && !term.whole;
    if (!alike) return;
    if (!result) result = Term{term.record, 0, term.head, true};
    const AttendRecord& first = records[result->record];
    alike = query_head(r, keys, term.head) == query_head(first, keys, result->head) && r.group == first.group;
    sum = field::add(sum, contributed_pairs(piece, term, r));
  });
  if (!alike || !result || sum != demanded_pairs(piece)) return std::nullopt;
  return result;
}

std::uint64_t Truth::contributed_pairs(const Piece& piece, const Term& term, const AttendRecord& r) const {
  const bool keys = has_key_rows(piece.cell);
  const AttendGeometry& of = *r.geometry;
  // All rows of one axis are all pairs, whichever axis it is.
  if (term.row == 0 && piece.rows == (keys ? of.k_rows : of.q_rows)) return all_pairs(of);
  const std::uint64_t key = digest_of(of.digest, term.row, piece.rows, keys);
  const auto [known, is_new] = (of.lasting ? lasting_ : of_plan_).contributed.find_or_add(key);
  if (is_new) *known = pairs(of, keys, term.row, piece.rows);
  return *known;
}

std::uint64_t Truth::pairs(const AttendGeometry& of, bool keys, std::int64_t row, std::int64_t rows) const {
  const std::uint64_t all = all_pairs(of);
  const std::span<const Piece> pieces = keys ? of.k : of.q;
  if (row <= 0 && row + rows >= (keys ? of.k_rows : of.q_rows)) return all;
  const std::vector<std::uint64_t>& by_piece = keys ? parts_of(of).by_key_piece : parts_of(of).by_query_piece;
  std::uint64_t sum = 0;
  for (auto piece = first_behind(pieces, row); piece != pieces.end() && piece->row0 < row + rows; ++piece) {
    const std::int64_t begin = std::max(row, piece->row0), end = std::min(row + rows, piece->row0 + piece->rows);
    const bool whole = end - begin == piece->rows;
    sum = field::add(sum, whole ? by_piece[static_cast<std::size_t>(piece - pieces.begin())] : pairs_of_part(of, keys, begin, end));
  }
  return sum;
}

std::uint64_t Truth::all_pairs(const AttendGeometry& of) const {
  if (of.all_pairs) return *of.all_pairs;
  // A single piece has all of them.
  std::vector<std::uint64_t> none, &by_query = of.q.size() > 1 ? parts_of(of).by_query_piece : none,
                                   &by_key = of.k.size() > 1 ? parts_of(of).by_key_piece : none;
  if (of.q.size() > 1) by_query.assign(of.q.size(), 0);
  if (of.k.size() > 1) by_key.assign(of.k.size(), 0);
  const auto add_to = [](std::vector<std::uint64_t>& sums, std::ptrdiff_t piece, std::uint64_t pairs) {
    if (sums.empty()) return;
    std::uint64_t& sum = sums[static_cast<std::size_t>(piece)];
    sum = field::add(sum, pairs);
  };
  std::uint64_t sum = 0;
  for (const Band& band : of.bands) {
    for_pieces(of, band, [&](const Piece& x, const Piece& y) {
      const std::uint64_t pairs = band_between(band, x, y);
      add_to(by_query, &x - of.q.data(), pairs);
      add_to(by_key, &y - of.k.data(), pairs);
      sum = field::add(sum, pairs);
    });
  }
  of.all_pairs = sum;
  return sum;
}

std::uint64_t Truth::pairs_of_part(const AttendGeometry& of, bool keys, std::int64_t begin, std::int64_t end) const {
  const auto from = keys ? &Band::k0 : &Band::q0, to = keys ? &Band::k1 : &Band::q1;
  BandsByRow& by_row = keys ? parts_of(of).by_key : parts_of(of).by_query;
  if (by_row.bands.empty()) {
    by_row.bands.assign(of.bands.begin(), of.bands.end());
    std::ranges::sort(by_row.bands, {}, from);
    for (const Band& band : by_row.bands) by_row.reach.push_back(std::max(band.*to, by_row.reach.empty() ? 0 : by_row.reach.back()));
  }
  std::uint64_t sum = 0;
  const auto first = std::ranges::upper_bound(by_row.reach, begin) - by_row.reach.begin();
  for (auto found = by_row.bands.begin() + first; found != by_row.bands.end() && (*found).*from < end; ++found) {
    Band band = *found;
    band.*from = std::max(band.*from, begin), band.*to = std::min(band.*to, end);
    if (band.*from >= band.*to) continue;
    for_pieces(of, band, [&](const Piece& x, const Piece& y) { sum = field::add(sum, band_between(band, x, y)); });
  }
  return sum;
}

/// Where pieces differ in their heads too, each pair of them counts for the heads that both have.
std::uint64_t Truth::contributed_by_pieces(const Piece& piece, const Term& term, const AttendRecord& r) const {
  const bool keys = has_key_rows(piece.cell);
  const std::int64_t heads_per_row_head = keys ? r.group : 1;
  const std::int64_t h0 = term.head * heads_per_row_head, h1 = h0 + piece.heads * heads_per_row_head;
  std::uint64_t sum = 0;
  for (const Piece& x : r.geometry->q) {
    for (const Piece& y : r.geometry->k) {
      const std::int64_t head0 = std::max({h0, x.head0, y.head0 * r.group}),
                         head1 = std::min({h1, x.head0 + x.heads, (y.head0 + y.heads) * r.group});
      if (head0 >= head1) continue;
      std::uint64_t pairs = 0;
      for (Band band : r.geometry->bands) {
        std::int64_t &begin = keys ? band.k0 : band.q0, &end = keys ? band.k1 : band.q1;
        begin = std::max(begin, term.row), end = std::min(end, term.row + piece.rows);
        pairs = field::add(pairs, band_between(band, x, y));
      }
      sum = field::add(sum, field::multiply(pairs, fingerprint_.heads(x.origin_head + head0 - x.head0, head1 - head0)));
    }
  }
  return sum;
}

}  // namespace periplus::plan
