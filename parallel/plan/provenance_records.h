#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "parallel/plan/provenance_pieces.h"

namespace periplus::plan {

/// Bands in the order of their first queries or keys, for a look at few rows.
struct BandsByRow {
  std::vector<Band> bands;
  std::vector<std::int64_t> reach;  ///< Where the bands up to each of them end, at most.
};

/// All that tells which (query, key) pairs an attend step works on. Steps that differ in heads only share it.
struct AttendGeometry {
  bool lasting;  ///< It names rows by the layout only, and so stands for steps of other plans too.
  std::span<const Band> bands;
  std::span<const Piece> q, k;  ///< By rising row.
  std::int64_t q_rows, k_rows;
  std::uint64_t digest;

  /// What Truth found out about it so far.
  mutable std::optional<std::uint64_t> all_pairs = {};
  struct Parts {
    std::vector<std::uint64_t> by_query_piece, by_key_piece;
    BandsByRow by_query, by_key;
  };
  mutable std::unique_ptr<Parts> parts = {};  ///< Few are asked for.
};

/// An attend or attend_backward step with the identity of its views at the time it ran.
struct AttendRecord {
  const AttendGeometry* geometry;
  std::int64_t group;
  /// Query head of head 0 where every piece has all heads of its view; then pairs and heads can be counted apart.
  std::optional<std::int64_t> first_head;
};

/// All steps of a proof. Geometries in terms of the layout serve the proofs of other plans as well.
class AttendRecords {
 public:
  /// Forgets the steps; geometries that last too unless the claim has the same layout and mask as before.
  void begin(const Claim& claim);
  bool same_claim() const { return same_claim_; }
  /// Sorts the pieces of the two views by row. Returns the number of the record.
  int add(std::span<const Band> bands, const View& q_view, Pieces& q, const View& k_view, Pieces& k);
  const AttendRecord& operator[](int record) const { return records_[static_cast<std::size_t>(record)]; }

 private:
  struct Geometries {
    Store<AttendGeometry> all;
    Store<Piece> pieces;
    Store<Band> bands;
    DigestMap<const AttendGeometry*> by_digest;  ///< Of those with all heads in every piece.
    void clear() { all.clear(), pieces.clear(), bands.clear(), by_digest.clear(); }
  };
  /// Steps that share bands follow each other.
  std::uint64_t digest_of_bands(std::span<const Band> bands);

  Geometries lasting_, of_plan_;
  std::array<std::uint64_t, 2> claim_{};  ///< Digests of layout and mask.
  bool same_claim_ = false;
  int ranks_ = 0;
  std::vector<AttendRecord> records_;
  std::span<const Band> last_bands_;
  std::uint64_t last_digest_ = 0;
};

}  // namespace periplus::plan
