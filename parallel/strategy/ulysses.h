#pragma once

#include "parallel/strategy/strategy.h"

namespace periplus::strategy {

/// Ranks that share heads trade them for rows: after one all-to-all each has all rows of the group and its share of the
/// heads; after attention a second brings the rows home (Jacobs et al. 2023; algorithms.md 4). Query heads are shared as
/// evenly as they go; a KV head goes to every rank whose query heads use it, and the owner of its rows adds the gradients
/// that come back, in rank order. A rank beyond the number of query heads gets none and only lends its rows.
///   ulysses  all ranks share heads
///   usp      head groups of `head_ranks` ranks, and rings of the ranks with equal heads in all groups (USP, LoongTrain 2D)
/// With `pieces` a rank's KV heads are traded in so many parts, each under way while another is worked on.
Strategy ulysses_strategy();
Strategy usp_strategy();

}  // namespace periplus::strategy
