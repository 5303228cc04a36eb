#pragma once

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "parallel/plan/fingerprint.h"
#include "parallel/plan/provenance_records.h"

namespace periplus::plan {

/// What Truth was asked before. Ranks ask for the same rows again and again: for out and lse, dq and dk, for every rank of a
/// head group, and all-to-all plans for each of P pieces of P x P.
struct KnownPairs {
  DigestMap<std::uint64_t> demanded, contributed;
  void clear() { demanded.clear(), contributed.clear(); }
};

/// Global rows and their fingerprints, straight from the claim.
class Truth {
 public:
  /// `lasting` is of this layout and mask: what is known of rows in terms of the layout.
  Truth(const Claim& claim, const RowOrders& orders, KnownPairs& lasting);

  std::int64_t group() const { return group_; }
  /// Fingerprint of what the mask demands of the rows of a piece (queries, or keys with all their queries) and its heads.
  std::uint64_t demanded(const Piece& piece) const;
  /// Fingerprint of what one term gives a piece.
  std::uint64_t contributed(const Piece& piece, const Term& term, const AttendRecord& record) const;
  /// Whether sums of one kind are together all that the mask demands of their rows and heads. Much cheaper than piece by
  /// piece, where rows of a step lie in many.
  bool complete(const Pieces& sums, const AttendRecords& records) const;
  /// The whole term that can take the place of all terms of a sum; none if they are no such sum. What is added to a row has
  /// pairs of that row only, so what holds for all rows of a piece together holds for any part of them.
  std::optional<Term> whole(const Piece& piece, const AttendRecords& records) const;

 private:
  /// Of the pairs only, as if there were one head; `pairs` of the rows [row, row + rows) of one axis of a record.
  std::uint64_t demanded_pairs(const Piece& piece) const;
  std::uint64_t contributed_pairs(const Piece& piece, const Term& term, const AttendRecord& record) const;
  std::uint64_t pairs(const AttendGeometry& of, bool keys, std::int64_t row, std::int64_t rows) const;
  /// Sums up the pairs of each query and key piece, so that each band is looked at once.
  std::uint64_t all_pairs(const AttendGeometry& of) const;
  std::uint64_t pairs_of_part(const AttendGeometry& of, bool keys, std::int64_t begin, std::int64_t end) const;
  std::uint64_t contributed_by_pieces(const Piece& piece, const Term& term, const AttendRecord& record) const;
  std::uint64_t band_between(const Band& band, const Piece& q, const Piece& k) const;

  const Claim& claim_;
  const RowOrders& orders_;
  std::int64_t group_;
  Fingerprint fingerprint_;
  KnownPairs& lasting_;
  mutable KnownPairs of_plan_;
  /// One term of one of the sums of `complete`.
  struct Share {
    const Piece* piece;
    Term term;
    auto place() const { return std::tuple(term.whole, term.head, piece->heads, term.row); }
    friend bool operator==(const Share& a, const Share& b) { return a.term.record == b.term.record && a.place() == b.place(); }
    friend bool operator<(const Share& a, const Share& b) {
      return a.term.record != b.term.record ? a.term.record < b.term.record : a.place() < b.place();
    }
  };
  mutable std::vector<Share> shares_;
};

}  // namespace periplus::plan
