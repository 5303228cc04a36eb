#pragma once

#include "parallel/strategy/strategy.h"

namespace periplus::strategy {

/// DistFlashAttn's schedule for contiguous shards and a causal mask (Li et al. 2023; algorithms.md 2.11). In step t rank w
/// attends its queries to the keys of rank w - t; a rank that has no such keys helps: it works with its own keys on the
/// queries of rank w - t + P and returns the result. So a triangle of blocks takes P/2 + 1 steps instead of P, without
/// another layout. Backward likewise: helpers return dq, the others dk and dv.
/// Bytes per rank, one document: about P/2 blocks of keys or of queries and results, less than half of them queries.
Strategy balanced_helper_strategy();

}  // namespace periplus::strategy
