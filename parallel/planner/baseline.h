#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "parallel/planner/batch.h"
#include "parallel/planner/search.h"

namespace periplus::planner {

/// Micro-batches as runs of sorted lengths (chunk.h), in each the longest first to the group that ends first; groups of one
/// kind. The first count of micro-batches, from the least on, for which memory suffices; then `more` beyond it, the best.
/// Nothing if a sequence does not fit into a group.
std::optional<std::vector<MicroBatch>> plan_by_chunks(const Batch& batch, int kind, int more);

/// Sequences packed into rows of as many tokens as a group of the kind holds, longest first, into the first row with room or
/// into the fullest; rows of similar time run side by side. Nothing if a sequence does not fit into a group.
std::optional<std::vector<MicroBatch>> plan_by_rows(const Batch& batch, int kind, bool best_fit);

/// Groups of one kind: the best of both and of the search. Nothing if a sequence does not fit into a group.
std::optional<std::vector<MicroBatch>> plan_of_kind(const Batch& batch, int kind, const SearchOptions& options);

/// Sum of the makespans, micro_batch_seconds included.
double seconds_of(const Batch& batch, const std::vector<MicroBatch>& micro_batches);

/// What others do, in seconds of the same cost model. 0 where it cannot be done.
struct Baselines {
  /// One kind of group for every batch, which must hold the length limit; and for this batch, which must hold its longest
  /// sequence. Assigned by the best of plan_by_chunks, plan_by_rows and search.
  double static_best = 0, adaptive = 0;
  int static_kind = -1, adaptive_kind = -1;
  /// plan_by_rows with the static kind.
  double first_fit = 0, best_fit = 0;
};

/// max_length: the length limit of training; at least the longest of the batch counts.
Baselines baselines(const Batch& batch, std::int64_t max_length, const SearchOptions& options);

}  // namespace periplus::planner
