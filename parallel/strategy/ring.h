#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "parallel/strategy/heads.h"
#include "parallel/strategy/strategy.h"

namespace periplus::strategy {

/// Ring attention (Liu et al. 2023; zigzag balance of later work comes from the layout): keys and values travel round a
/// ring of ranks, and every rank attends its own queries to the block at hand while the next one arrives. Three routes:
///   one way    each block visits next, next but one, ...: P-1 hops.
///   two ways   each block leaves in both directions and meets itself half way: P/2 hops, both directions of a link busy.
///   nested     a ring of nodes whose visits are rings inside a node (LoongTrain's double ring): one hop between nodes
///              hides behind all hops inside.
/// In backward the gradients of a block follow it one hop behind: its first visitor starts their sum, later ones add to
/// it, the last sends it home, where it meets the owner's own part. Every route sends (P-1) kv per rank forward, and
/// (P-1) kv plus (P-1) kv in accumulator type backward. Source: algorithms.md 2.2, 2.3, 2.7, 2.8.
struct Ring {
  std::span<const plan::Rank> members;
  int self = 0;  ///< Index of this rank in members.
  std::function<std::int64_t(int member)> rows_of = {};
  /// The bands of (own queries, keys of a member) in local rows.
  std::function<std::span<const Band>(int member)> bands_with = {};
  HeadRange heads = {};  ///< Of the query heads at hand.
  double scale = 1, softcap = 0;
  std::string name = {};  ///< Prefix of scratch slots, where one program has several rings.
  int pieces = 1;         ///< Parts of a block by KV heads, at most as many as there are KV heads.
  bool two_ways = false;
  int node = 0;  ///< Members of a node, consecutive and dividing size(); 0: one node.

  int size() const noexcept { return static_cast<int>(members.size()); }
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

/// Bytes that all members of a ring send together, when their rows add up to `rows`: exact for any rows. Who sends all keys and
/// values to all others, and gradients back, sends as many.
std::int64_t ring_bytes(const AttentionProblem& problem, Pass pass, std::int64_t members, std::int64_t rows, std::int64_t kv_heads);

/// Rows of the strategy table.
Strategy ring_strategy();
Strategy bidirectional_ring_strategy();
Strategy double_ring_strategy();

}  // namespace periplus::strategy
