#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "launch/bench/gpu_figures.h"
#include "launch/bench/gpu_problem.h"
#include "launch/bench/report.h"

/// Two pieces of work on a GPU, timed in turn, as one line of the report.
namespace periplus::launch::bench {

/// Something timed, and how much of it a run does.
struct GpuWork {
  std::function<void(StreamView)> work;
  double amount = 0;
};
GpuWork forward_side(const GpuProblem& problem, kernels::Update update = kernels::Update::overwrite);
GpuWork backward_side(const GpuProblem& problem, kernels::Update update = kernels::Update::overwrite);

/// Seconds of both sides, taken in turn.
struct Samples {
  std::vector<double> ours, yardstick;
};
/// After one run of each that does not count.
Samples alternate(const GpuWork& ours, const GpuWork& yardstick, const GpuSampling& sampling);

Line named(const std::string& name, const std::string& unit);
/// Rates, ours over the yardstick's.
Line rate_line(const std::string& name, const GpuWork& ours, const GpuWork& yardstick, const std::string& unit, double per_unit,
               std::optional<Goal> goal, const GpuSampling& sampling);
/// Times in ms, ours over the yardstick's, which may not exceed the goal.
Line time_line(const std::string& name, const Samples& samples, double most);
/// A line that says what is wrong, or what `measure` finds.
std::vector<Line> wrong_or(const std::string& wrong, const std::string& name, const std::function<std::vector<Line>()>& measure);

}  // namespace periplus::launch::bench
