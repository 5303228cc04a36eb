#pragma once

#include <optional>
#include <vector>

#include "parallel/planner/batch.h"

namespace periplus::launch::exam {

/// Groups of one kind as FlexSP's released solver makes them for what it compares with: DeepSpeed, whose one degree is that of all
/// devices, and BatchAda, the best degree of each batch (solve_homo_sp_ffd_bfd_globalbatch in galvatron/flexsp_solver/solver.py).
/// Best fit, longest first, into rows of 0.9 of what a group holds, or of the longest sequence; as many rows as a micro-batch has groups
/// run side by side in the order in which they were opened. Groups that stay empty get a sequence of an earlier row; from degree 16
/// on the last micro-batch is then evened out by tokens. Nothing where a group holds too much.
std::optional<std::vector<planner::MicroBatch>> packed_as_released(const planner::Batch& batch, int kind);

}  // namespace periplus::launch::exam
