#pragma once

#include <functional>
#include <span>
#include <vector>

#include "parallel/strategy/strategy.h"

namespace periplus::strategy {

/// Ring attention (Liu et al. 2023; zigzag balance of later work comes from the layout): keys and values travel once
/// round a ring of ranks, every rank attends its own queries to the block at hand while the next one arrives.
/// Source: algorithms.md 2.2, 2.3. Bytes per rank: forward (P-1) kv; backward (P-1) kv + P kv in accumulator type.
struct Ring {
  std::span<const plan::Rank> members;
  int self = 0;  ///< Index of this rank in members.
  std::function<std::int64_t(int member)> rows_of;
  /// Appends the bands of (own queries, keys of a member) in local rows.
  std::function<void(int member, std::vector<Band>& bands)> bands_with;
  double scale = 1, softcap = 0;

  int size() const noexcept { return static_cast<int>(members.size()); }
  plan::Rank next() const { return members[static_cast<std::size_t>((self + 1) % size())]; }
  plan::Rank previous() const { return members[static_cast<std::size_t>((self + size() - 1) % size())]; }
  /// Member whose keys are here at a hop.
  int origin_at(int hop) const { return (self + size() - hop % size()) % size(); }
  std::int64_t most_rows() const;
};

/// Forward of the ring: the state (out, lse), in accumulator type, starts undefined and ends complete.
struct RingForward {
  plan::View q, k, v;
  plan::View state_out, state_lse;
};
/// Backward: dq, dk, dv are sums in accumulator type; they start undefined and end complete and at home.
struct RingBackward {
  plan::View q, k, v, dout, lse, delta;
  plan::View dq, dk, dv;
};
void ring_forward(plan::ProgramBuilder& program, const RingForward& on, const Ring& ring);
void ring_backward(plan::ProgramBuilder& program, const RingBackward& on, const Ring& ring);

/// Row of the strategy table.
Strategy ring_strategy();

}  // namespace periplus::strategy
