#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "parallel/plan/fingerprint.h"
#include "parallel/plan/provenance_pieces.h"

namespace periplus::plan {

/// An attend or attend_backward step with the identity of its views at the time it ran.
struct AttendRecord {
  const Program* program;
  const Step* step;
  Pieces q, k;
  std::int64_t q_rows, q_heads, k_rows, group;
  mutable std::optional<std::uint64_t> whole = {};  ///< Fingerprint of everything it computed, once known.
};

/// Global rows and their fingerprints, straight from the claim.
class Truth {
 public:
  explicit Truth(const Claim& claim);

  std::int64_t group() const { return group_; }
  /// Fingerprint of what the mask demands of the rows of a piece (queries, or keys with all their queries) and its heads.
  std::uint64_t demanded(const Piece& piece) const;
  /// Fingerprint of what one term gives a piece.
  std::uint64_t contributed(const Piece& piece, const Term& term, const AttendRecord& record) const;

 private:
  template <class Fn>
  void for_runs(Rank rank, std::int64_t row0, std::int64_t rows, Fn&& fn) const;
  std::uint64_t band_between(const Band& band, const Piece& q, const Piece& k) const;

  const Claim& claim_;
  std::int64_t group_;
  Fingerprint fingerprint_;
};

}  // namespace periplus::plan
