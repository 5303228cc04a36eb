#pragma once

#include <span>

#include "parallel/planner/batch.h"

namespace periplus::planner {

/// Shortens one micro-batch by changes to its longest group, each of which must leave all groups that it touches shorter than
/// that one was: another of the kinds allowed, a sequence moved to another group or swapped with one there, twice the devices
/// if enough idle, half of them for each half of its sequences. kinds: those allowed, ascending. At most `rounds` changes.
/// Cost of a round: O(sequences of the group x all sequences of the micro-batch). True if it got shorter.
bool improve(const Batch& batch, std::span<const int> kinds, MicroBatch& micro_batch, int rounds);

}  // namespace periplus::planner
