#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <optional>
#include <unordered_map>
#include <vector>

#include "parallel/plan/fingerprint.h"
#include "parallel/plan/provenance_pieces.h"

namespace periplus::plan {

/// An attend or attend_backward step with the identity of its views at the time it ran: pieces by rising row.
struct AttendRecord {
  const Program* program;
  const Step* step;
  Pieces q, k;
  std::int64_t q_rows, q_heads, k_rows, group;
  /// Query head of head 0 where every piece has all heads of its view; then pairs and heads can be counted apart.
  std::optional<std::int64_t> first_head = {};
  std::uint64_t geometry = 0;  ///< Digest of bands and rows: ranks that share heads work on the same pairs.

  AttendRecord(const Program* of, const Step* attend, std::uint64_t bands, Pieces queries, Pieces keys, const View& q_view,
               const View& k_view);
};

/// Digests of the bands of steps; those that share bands follow each other.
class DigestsOfBands {
 public:
  std::uint64_t operator()(std::span<const Band> bands);

 private:
  std::span<const Band> last_;
  std::uint64_t digest_ = 0;
};

/// Bands in the order of their first queries or keys, for a look at few rows.
struct BandsByRow {
  std::vector<Band> bands;
  std::vector<std::int64_t> reach;  ///< Where the bands up to each of them end, at most.
};

/// Global rows and their fingerprints, straight from the claim.
class Truth {
 public:
  Truth(const Claim& claim, const RowOrders& orders);

  std::int64_t group() const { return group_; }
  /// Fingerprint of what the mask demands of the rows of a piece (queries, or keys with all their queries) and its heads.
  std::uint64_t demanded(const Piece& piece) const;
  /// Fingerprint of what one term gives a piece.
  std::uint64_t contributed(const Piece& piece, const Term& term, const AttendRecord& record) const;
  /// The whole term that can take the place of all terms of a sum; none if they are no such sum. What is added to a row has
  /// pairs of that row only, so what holds for all rows of a piece together holds for any part of them.
  std::optional<Term> whole(const Piece& piece, const std::deque<AttendRecord>& records) const;

 private:
  /// Of the pairs only, as if there were one head; `pairs` of the rows [row, row + rows) of one axis of a record.
  std::uint64_t demanded_pairs(const Piece& piece) const;
  std::uint64_t contributed_pairs(const Piece& piece, const Term& term, const AttendRecord& record) const;
  std::uint64_t pairs(const AttendRecord& record, bool keys, std::int64_t row, std::int64_t rows) const;
  /// All pairs of a record, by its pieces, so that each band is summed up once.
  struct PairSums {
    std::vector<std::uint64_t> by_query_piece, by_key_piece;
    BandsByRow by_query, by_key;  ///< Empty until rows of a part of a piece are asked for.
  };
  PairSums& sums_of(const AttendRecord& record) const;
  std::uint64_t pairs_of_part(const AttendRecord& record, PairSums& sums, bool keys, std::int64_t begin, std::int64_t end) const;
  std::uint64_t contributed_by_pieces(const Piece& piece, const Term& term, const AttendRecord& record) const;
  std::uint64_t band_between(const Band& band, const Piece& q, const Piece& k) const;

  const Claim& claim_;
  const RowOrders& orders_;
  std::int64_t group_;
  Fingerprint fingerprint_;
  /// What was asked before. Ranks ask for the same rows again and again: for out and lse, dq and dk, for every rank of a
  /// head group, and all-to-all plans for each of P pieces of P x P.
  mutable std::unordered_map<std::uint64_t, std::uint64_t> demanded_, pairs_;
  mutable std::unordered_map<std::uint64_t, PairSums> sums_;  ///< By geometry.
};

}  // namespace periplus::plan
