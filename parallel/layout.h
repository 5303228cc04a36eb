#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/row_move.h"

namespace periplus {

/// Of a packed sequence: pairs of tokens, and their products with numbers of ranks, are counted in 64 bits.
inline constexpr std::int64_t kMostTokens = std::int64_t{1} << 31;

/// Which rank owns which tokens of a packed sequence. None of them pads, and any length works, also one below the rank count.
enum class LayoutKind {
  contiguous,       ///< Rank r owns one range.
  zigzag,           ///< 2P chunks of the packed sequence; rank r owns chunks r and 2P-1-r: equal causal work for one document.
  striped,          ///< Rank r owns every P-th token.
  document_zigzag,  ///< Zigzag inside every document: equal causal work for any mix; local order: all early halves, then all late.
  balanced,         ///< Chunks dealt so that all ranks have equal attention work; needs the mask (balanced_layout.h).
  custom            ///< The caller's own segments.
};
std::string_view to_string(LayoutKind kind) noexcept;
/// Throws InvalidArgument that lists the names.
LayoutKind layout_kind_from_string(std::string_view name);

/// Tokens of one document that are consecutive on one rank and evenly spaced in the packed sequence:
/// local row local0 + t holds global row global0 + t * stride, 0 <= t < length.
struct Segment {
  int rank = 0;
  std::int64_t local0 = 0;
  std::int64_t global0 = 0;
  std::int64_t length = 0;
  std::int64_t stride = 1;
  int document = 0;  ///< Found by the layout: from_segments does not read it.
  std::int64_t global_end() const noexcept { return global0 + (length - 1) * stride + 1; }
};

/// A permutation of the rows of a packed sequence over ranks, and the only source of positions, masks and labels.
/// Independent of the strategy. Row i of document d has global row cu_seqlens[d] + i. Immutable.
class SequenceLayout {
 public:
  /// cu_seqlens: document borders, 0 = cu[0] <= cu[1] <= ... <= cu[n] = tokens <= kMostTokens. `kind` is neither balanced nor custom.
  static SequenceLayout make(LayoutKind kind, int ranks, std::span<const std::int64_t> cu_seqlens);
  /// The caller's own. Throws InvalidArgument unless the segments hold every global row once and the local rows of each
  /// rank are 0..n-1 without gaps. A segment that crosses a document border is split.
  static SequenceLayout from_segments(int ranks, std::span<const std::int64_t> cu_seqlens, std::vector<Segment> segments);

  friend struct GroupedLayout;
  /// from_segments for the segments that make_layout deals.
  static SequenceLayout balanced(int ranks, std::span<const std::int64_t> cu_seqlens, std::vector<Segment> segments);

  // What asks for a rank throws InvalidArgument if there is none of that number.

  LayoutKind kind() const noexcept { return kind_; }
  int ranks() const noexcept { return ranks_; }
  std::int64_t tokens() const noexcept { return cu_seqlens_.back(); }
  std::int64_t rows_of(int rank) const { return rows_[index_of(rank)]; }
  /// Segments of a rank by rising local row.
  std::span<const Segment> segments_of(int rank) const;
  /// The same segments by rising global0.
  std::span<const Segment> segments_by_global(int rank) const;
  std::span<const std::int64_t> cu_seqlens() const noexcept { return cu_seqlens_; }

  /// Global row of each local row of a rank.
  std::vector<std::int64_t> global_rows(int rank) const;
  /// Position inside its document of each local row of a rank, for RoPE.
  std::vector<std::int64_t> positions(int rank) const;
  /// Equal for equal layouts, on every rank and machine.
  std::uint64_t digest() const noexcept { return digest_; }

 private:
  SequenceLayout() = default;
  void finalise();
  std::size_t index_of(int rank) const;
  LayoutKind kind_ = LayoutKind::contiguous;
  int ranks_ = 1;
  std::vector<std::int64_t> cu_seqlens_;
  std::vector<std::int64_t> rows_;
  std::vector<Segment> by_local_;   // all ranks, grouped by rank
  std::vector<Segment> by_global_;  // the same, each group by global0
  std::vector<std::size_t> first_;  // group borders, ranks + 1
  std::uint64_t digest_ = 0;
};

/// A layout in which each group of ranks owns the rows of all its members, in the order of the sequence where chunks of
/// members join again then (zigzag), or single rows do (striped documents, if there are fewer rows than pairs of segments,
/// each of which would be a band of the mask); else member after member. Only stripes that leave gaps cost work per token.
struct GroupedLayout {
  /// Rows of a member that travel together.
  struct Part {
    int member = 0;                           ///< Index in the group.
    std::int64_t from = 0, to = 0, rows = 0;  ///< Local row of the member; row of the group as it arrives.
  };
  /// Every rank of `layout` is in one group.
  GroupedLayout(const SequenceLayout& layout, std::span<const std::vector<int>> groups);

  SequenceLayout layout;
  std::vector<std::vector<Part>> parts;  ///< By group, by member, by rising row.
  /// By group, from where rows arrive to where the layout has them; empty where they arrive in their place. They do if
  /// members have few segments: each is a part of its own then.
  std::vector<std::vector<RowMove>> moves;

 private:
  enum class Order {
    members,   ///< One after the other.
    in_place,  ///< Segments by global row; they arrive there.
    sequence,  ///< Segments by global row, moved there.
    turns      ///< The same, but stripes of a document row by row.
  };
  void lay_out(const SequenceLayout& from, std::span<const std::vector<int>> groups, Order order);
  /// Pairs of segments of one document and group: at most so many bands has the mask between a group's queries and keys.
  std::int64_t pairs_of_segments() const;
};

}  // namespace periplus
