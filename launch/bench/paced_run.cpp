#include "launch/bench/paced_run.h"

#include <algorithm>
#include <vector>

#include "parallel/simulate/simulate.h"

namespace periplus::launch::bench {

Bounds bounds_of(const plan::Plan& plan, const comm::Links& links, const execute::Pace& pace) {
  Bounds bounds;
  std::vector<double> sends(plan.programs.size(), 0), receives(plan.programs.size(), 0);
  for (std::size_t rank = 0; rank < plan.programs.size(); ++rank) {
    const plan::Program& program = plan.programs[rank];
    double compute = 0;
    for (const plan::Step& step : program.steps) {
      if (step.op != plan::Op::exchange) compute += pace(program, step);
      for (const plan::Message& m : program.sends_of(step)) {
        const comm::Pacing& pacing = links.same_node(static_cast<int>(rank), m.peer) ? links.inside : links.between;
        const double seconds = static_cast<double>(program.bytes_of(m.view)) / pacing.bytes_per_second;
        sends[rank] += seconds, receives[static_cast<std::size_t>(m.peer)] += seconds;
      }
    }
    bounds.compute = std::max(bounds.compute, compute);
  }
  bounds.link = std::max(std::ranges::max(sends), std::ranges::max(receives));
  return bounds;
}

double simulated_seconds(const plan::Plan& plan, const comm::Links& links, const execute::Pace& pace) {
  return simulate::simulate(plan, {pace, links}).makespan;
}

}  // namespace periplus::launch::bench
