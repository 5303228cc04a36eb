#pragma once

#include "parallel/strategy/strategy.h"

namespace periplus::strategy {

/// TokenRing: keys and values stay. Queries travel round the ring, to lower ranks, and what a rank has computed for them goes
/// straight back to their owner: both directions of full-duplex links are busy. A packet shrinks on its way to the rows that
/// a later visitor needs, which under causal zigzag is the late half once it has passed rank 0 (algorithms.md 3.2).
/// Backward: (q, dout, lse, delta) travel likewise and dq comes back; dk and dv never move (3.3).
/// Bytes per rank, whole packets: forward (P-1) rows of q and of (out, lse) in accumulator type; backward (P-1) rows of q,
/// dout, lse, delta and of dq in accumulator type. All in query heads: with G heads to a KV head it sends G times what a
/// ring does, so it is for one query head to a KV head, or for keys that are longer than queries.
Strategy token_ring_strategy();

}  // namespace periplus::strategy
