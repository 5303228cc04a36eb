#pragma once

#include <vector>

#include "launch/bench/report.h"
#include "launch/bench/sampling.h"

namespace periplus::launch::bench {

struct AccuracyCase {
  std::int64_t rows = 0, width = 128;
  double spread = 1;  ///< Standard deviation of the logits.
};

/// One line each for out, lse, dq, dk, dv of a causal head in bf16 against fp64, at sampled rows and keys. value and
/// yardstick are the relative errors (root mean square) of our kernels and of a plain bf16 implementation; ratio is theirs
/// or that of the largest errors, whichever is larger.
std::vector<Line> measure_accuracy(const AccuracyCase& problem, const Progress& progress);

}  // namespace periplus::launch::bench
