#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/attention.h"

// Attention problems that several tests of plans share.
namespace periplus::test {

using Lengths = std::vector<std::int64_t>;

inline const std::vector<LayoutKind> kLayoutKinds{LayoutKind::contiguous, LayoutKind::zigzag, LayoutKind::striped,
                                                  LayoutKind::document_zigzag};

inline Lengths borders(const Lengths& lengths) {
  Lengths cu{0};
  for (const std::int64_t length : lengths) cu.push_back(cu.back() + length);
  return cu;
}

/// Small heads; head and value size are equal so that a plan that confuses k with v is still well formed.
inline AttentionProblem ring_problem(LayoutKind layout, int ranks, const Lengths& cu, const MaskSpec& mask = {}, int q_heads = 4,
                                     int kv_heads = 2) {
  AttentionProblem problem{SequenceLayout::make(layout, ranks, cu), Mask(mask, cu)};
  problem.q_heads = q_heads, problem.kv_heads = kv_heads, problem.head_size = problem.value_size = 8;
  return problem;
}

inline std::string describe(LayoutKind layout, int ranks, const Lengths& cu, const MaskSpec& mask, Pass pass) {
  std::string text(to_string(layout));
  text += " ranks " + std::to_string(ranks) + (pass == Pass::forward ? " forward" : " backward") + (mask.causal ? " causal" : " full");
  text += " window " + std::to_string(mask.window_left) + "," + std::to_string(mask.window_right) + " sinks " +
          std::to_string(mask.sink_tokens) + " tokens " + std::to_string(cu.back()) + " in " + std::to_string(cu.size() - 1);
  return text;
}

}  // namespace periplus::test
