#pragma once

#include <optional>
#include <span>
#include <vector>

#include "parallel/planner/batch.h"

namespace periplus::planner {

/// Longest-processing-time greedy over groups that are given: counts[c] of choice c of the menu. Each sequence, from the
/// longest down, goes where it ends first, of those with memory for it; ties: the smaller degree. Nothing if a sequence finds
/// no memory, or would end at `limit` or later.
std::optional<MicroBatch> assign_greedily(const Batch& batch, const Menu& menu, std::span<const int> members, std::span<const int> counts,
                                          double limit);

/// Looks for a better partition of the devices for the members of one micro-batch: from the present one along halvings and
/// mergers of groups, as long as the greedy assignment gets shorter. Partitions that the work they must do rules out are not
/// tried. At most `tries` assignments. True if the micro-batch got shorter.
bool regroup(const Batch& batch, const Menu& menu, MicroBatch& micro_batch, int tries);

}  // namespace periplus::planner
