#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/band.h"
#include "parallel/layout.h"

namespace periplus {

/// What may attend to what, in words a user knows. Tokens of different documents never attend.
struct MaskSpec {
  bool causal = true;              ///< k <= q.
  std::int64_t window_left = -1;   ///< q - k <= window_left; -1: unlimited.
  std::int64_t window_right = -1;  ///< k - q <= window_right; -1: unlimited. Causal implies 0.
  std::int64_t sink_tokens = 0;    ///< The first so many keys of each document stay visible outside the window.
};

/// The same as disjoint bands over global rows, sorted by q0 (algorithms.md 1.3). Immutable.
class Mask {
 public:
  /// Throws InvalidArgument for negative sizes other than -1.
  Mask(const MaskSpec& spec, std::span<const std::int64_t> cu_seqlens);

  const MaskSpec& spec() const noexcept { return spec_; }
  std::span<const Band> bands() const noexcept { return bands_; }
  std::span<const std::int64_t> cu_seqlens() const noexcept { return cu_seqlens_; }
  std::int64_t area() const noexcept;
  std::uint64_t digest() const noexcept { return digest_; }

 private:
  MaskSpec spec_;
  std::vector<std::int64_t> cu_seqlens_;
  std::vector<Band> bands_;
  std::uint64_t digest_ = 0;
};

/// The bands of the pair (queries of q_rank, keys of k_rank) in local rows of both, disjoint, appended to `bands`.
/// This one routine serves every layout and mask. Cost: O(bands found + segments touched).
void append_bands_between(const SequenceLayout& layout, const Mask& mask, int q_rank, int k_rank, std::vector<Band>& bands);
/// The same for one band of the mask and one segment of each side.
void append_bands_between(const Band& global, const Segment& q, const Segment& k, std::vector<Band>& bands);

/// Local rows [begin, end) of a rank.
struct RowRange {
  std::int64_t begin = 0, end = 0;
  std::int64_t rows() const noexcept { return end - begin; }
  friend bool operator==(const RowRange&, const RowRange&) = default;
};
/// The smallest range that holds both; an empty one adds nothing.
RowRange hull(const RowRange& a, const RowRange& b) noexcept;

/// Allowed pairs of all queries of a rank: its share of the attention work.
std::int64_t area_of_rank(const SequenceLayout& layout, const Mask& mask, int rank);

}  // namespace periplus
