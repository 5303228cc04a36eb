#pragma once

#include <span>
#include <string>
#include <vector>

#include "launch/attention_check.h"
#include "parallel/linear_attention.h"

namespace periplus::launch {

/// One kind of linear attention that `periplus verify` looks at.
struct LinearVerificationCase {
  Decay decay = Decay::none;
  bool delta_rule = false, bidirectional = false, normalise = false;
  std::string name() const;
};
std::vector<LinearVerificationCase> linear_verification_cases();

LinearAttentionProblem verification_problem(LayoutKind layout, const LinearVerificationCase& problem_case,
                                            std::span<const std::int64_t> borders, int ranks);

/// Runs the problem in f64 on thread ranks, with fixed random data, and compares out and all gradients with one call of the
/// reference kernels on the whole sequence.
NumericCheck compare_with_reference(const LinearAttentionProblem& problem, const LinearAttentionOptions& options, Device device);

}  // namespace periplus::launch
