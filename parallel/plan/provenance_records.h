#pragma once

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

/// All steps of a proof.
class AttendRecords {
 public:
  /// Sorts the pieces of the two views by row. Returns the number of the record.
  int add(std::span<const Band> bands, const View& q_view, Pieces& q, const View& k_view, Pieces& k);
  const AttendRecord& operator[](int record) const { return records_[static_cast<std::size_t>(record)]; }

 private:
  /// Steps that share bands follow each other.
  std::uint64_t digest_of_bands(std::span<const Band> bands);

  Store<AttendGeometry> geometries_;
  Store<Piece> pieces_;
  DigestMap<const AttendGeometry*> by_digest_;  ///< Of those with all heads in every piece.
  std::vector<AttendRecord> records_;
  std::vector<std::int64_t> words_;
  std::span<const Band> last_bands_;
  std::uint64_t last_digest_ = 0;
};

}  // namespace periplus::plan
