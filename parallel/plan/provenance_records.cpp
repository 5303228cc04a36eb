#include "parallel/plan/provenance_records.h"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "runtime/file.h"

namespace periplus::plan {

void AttendRecords::begin(const Claim& claim) {
  const std::array<std::uint64_t, 2> now{claim.layout.digest(), claim.mask.digest()};
  same_claim_ = now == claim_;
  claim_ = now;
  ranks_ = claim.layout.ranks();
  records_.clear();
  of_plan_.clear();
  if (!same_claim_) lasting_.clear();
  last_bands_ = {};
}

int AttendRecords::add(std::span<const Band> bands, const View& q_view, Pieces& q, const View& k_view, Pieces& k) {
  Digest digest_of;
  digest_of.add(digest_of_bands(bands));
  bool whole = !q.empty() && !k.empty(), by_rank = true;
  for (auto [pieces, view] : {std::pair(&q, &q_view), std::pair(&k, &k_view)}) {
    if (!std::ranges::is_sorted(*pieces, {}, &Piece::row0)) std::ranges::stable_sort(*pieces, {}, &Piece::row0);
    digest_of.add(view->rows).add(std::ssize(*pieces));
    for (const Piece& piece : *pieces) {
      digest_of.add(piece.row0).add(piece.rows).add(std::int64_t{piece.origin}).add(piece.origin_row);
      by_rank = by_rank && piece.origin < ranks_;
      whole = whole && piece.head0 == 0 && piece.heads == view->heads && piece.origin_head == pieces->front().origin_head;
    }
  }
  const std::uint64_t digest = digest_of.value();
  const bool lasts = whole && by_rank;
  Geometries& among = lasts ? lasting_ : of_plan_;
  const auto made = [&] {
    const std::span<const Band> kept = lasts ? among.bands.add_all(bands) : bands;
    return among.all.add({lasts, kept, among.pieces.add_all(q), among.pieces.add_all(k), q_view.rows, k_view.rows, digest});
  };
  const AttendGeometry* geometry = nullptr;
  if (whole) {
    const auto [known, is_new] = among.by_digest.find_or_add(digest);
    if (is_new) *known = made();
    geometry = *known;
  } else {
    geometry = made();
  }
  const std::optional<std::int64_t> first_head = whole ? std::optional(q.front().origin_head) : std::nullopt;
  records_.push_back({geometry, q_view.heads / k_view.heads, first_head});
  return static_cast<int>(records_.size()) - 1;
}

std::uint64_t AttendRecords::digest_of_bands(std::span<const Band> bands) {
  static_assert(std::has_unique_object_representations_v<Band>);
  if (bands.data() != last_bands_.data() || bands.size() != last_bands_.size()) {
    last_bands_ = bands;
    last_digest_ = hash64({reinterpret_cast<const char*>(bands.data()), bands.size_bytes()});
  }
  return last_digest_;
}

}  // namespace periplus::plan
