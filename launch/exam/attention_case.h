#pragma once

#include <cstdint>
#include <string>

#include "parallel/attention.h"
#include "parallel/simulate/machine.h"

namespace periplus::launch::exam {

/// One attention over ranks, as benchmarks of strategies run it: one document, head size 128.
struct AttentionCase {
  int ranks = 1;
  std::int64_t tokens = 0;
  int heads = 1, kv_heads = 1;
  LayoutKind layout = LayoutKind::zigzag;
  bool causal = true;
  AttentionOptions how = {};
  DType dtype = DType::bf16;
  bool narrow_sums = false;  ///< simulate::narrow_sums
};

constexpr int kHeadSize = 128;

plan::Plan plan_of(const AttentionCase& c, Pass pass);
/// Simulated seconds.
double seconds_of(const AttentionCase& c, const simulate::Machine& machine, Pass pass);
/// Flop of all ranks, masked pairs left out.
double flops_of(const AttentionCase& c, Pass pass);

}  // namespace periplus::launch::exam
