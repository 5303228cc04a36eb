#include "launch/bench/paced_run.h"

#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

#include "parallel/simulate/simulate.h"

namespace periplus::launch::bench {
namespace {

/// Time that the events take together, each moment once.
template <class Chosen>
double covered_us(const Tracer& trace, Chosen&& chosen) {
  std::vector<std::pair<double, double>> spans;
  for (const TraceEvent& event : trace.events()) {
    if (chosen(event)) spans.emplace_back(event.begin_us, event.begin_us + event.duration_us);
  }
  std::ranges::sort(spans);
  double covered = 0, end = spans.empty() ? 0 : spans.front().first;
  for (const auto& [first, last] : spans) {
    covered += std::max(0.0, last - std::max(first, end));
    end = std::max(end, last);
  }
  return covered;
}

}  // namespace

Exposure& Exposure::operator+=(const Exposure& other) {
  exposed_us += other.exposed_us, under_way_us += other.under_way_us;
  return *this;
}

Exposure exposure_of(std::span<const Tracer> traces) {
  const auto computes = [](const TraceEvent& event) { return event.track == "compute"; };
  Exposure exposure;
  for (const Tracer& trace : traces) {
    exposure +=
        {covered_us(trace, [](const TraceEvent&) { return true; }) - covered_us(trace, computes), covered_us(trace, std::not_fn(computes))};
  }
  return exposure;
}

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
