#include "launch/exam/attention_case.h"

#include <vector>

#include "parallel/balanced_layout.h"
#include "parallel/simulate/attention_time.h"
#include "parallel/simulate/simulate.h"

namespace periplus::launch::exam {

plan::Plan plan_of(const AttentionCase& c, Pass pass) {
  MaskSpec spec;
  spec.causal = c.causal;
  const std::vector<std::int64_t> borders{0, c.tokens};
  const Mask mask(spec, borders);
  AttentionProblem problem{.layout = make_layout(c.layout, c.ranks, mask), .mask = mask};
  problem.q_heads = c.heads, problem.kv_heads = c.kv_heads, problem.head_size = kHeadSize, problem.dtype = c.dtype;
  plan::Plan plan = make_plan(problem, c.how, pass);
  if (c.narrow_sums) simulate::narrow_sums(plan);
  return plan;
}

double seconds_of(const AttentionCase& c, const simulate::Machine& machine, Pass pass) {
  const auto compute = [&](const plan::Program& program, const plan::Step& step) {
    return simulate::step_seconds(machine.kernels, program, step);
  };
  return simulate::simulate(plan_of(c, pass), {compute, machine.links, machine.overlap_slowdown, machine.all_to_all}).makespan;
}

double flops_of(const AttentionCase& c, Pass pass) {
  const double n = static_cast<double>(c.tokens), pairs = c.causal ? n * (n + 1) / 2 : n * n;
  return (pass == Pass::forward ? 4 : 10) * pairs * c.heads * kHeadSize;
}

}  // namespace periplus::launch::exam
