#pragma once

#include <cstdint>

#include "parallel/planner/batch.h"

namespace periplus::planner {

struct Proof {
  double seconds = 0;     ///< Of the best plan found; the least there is if `complete`.
  bool complete = false;  ///< Everything was tried or ruled out.
  std::int64_t nodes = 0;
};

/// The least time of any plan, by branch and bound: each sequence, from the longest down, into every group that differs from
/// those tried, every new group and one new micro-batch. For small cases: about ten sequences on eight devices.
///
/// best: seconds of a plan that is known, or infinity. most_nodes: where to give up.
Proof prove(const Batch& batch, double best, std::int64_t most_nodes);

}  // namespace periplus::planner
