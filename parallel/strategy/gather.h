#pragma once

#include "parallel/strategy/strategy.h"

namespace periplus::strategy {

/// Keys and values are fetched from their owners in stages; while one stage is under way, the rank attends its queries to
/// what the last one brought. In backward the rows are fetched again, and their partial dk, dv go home in accumulator type,
/// where the owner adds them stage by stage, nearest rank first. Three presets of one generator:
///   gather_kv   all rows; a stage is a group of KV heads (all-gather with KV heads pipelined, Llama 3; algorithms.md 2.9)
///   group_cast  the rows that the mask needs; a stage is a group of ranks by distance (MagiAttention; 8.6)
///   halo        the same in one stage, for sliding windows: neighbours only, on both sides under zigzag (2.6)
/// Bytes per rank: gather_kv (P-1) kv forward, backward that and (P-1) kv in accumulator type; the others the rows needed.
Strategy gather_kv_strategy();
Strategy group_cast_strategy();
Strategy halo_strategy();

}  // namespace periplus::strategy
