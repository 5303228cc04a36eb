#include "launch/bench/gpu_sides.h"

#include <algorithm>

#include "launch/bench/statistics.h"

namespace periplus::launch::bench {
namespace {

void fill_ratios(Line& line, std::vector<double> ratios) {
  line.ratio = median(ratios);
  line.ratio_min = std::ranges::min(ratios);
  line.ratio_max = std::ranges::max(ratios);
  line.kept = line.taken = ratios.size();
}

}  // namespace

GpuWork forward_side(const GpuProblem& problem, kernels::Update update) {
  return {[&problem, update](StreamView stream) { problem.forward(update, stream); }, problem.forward_flop()};
}
GpuWork backward_side(const GpuProblem& problem, kernels::Update update) {
  return {[&problem, update](StreamView stream) { problem.backward(update, stream); }, problem.backward_flop()};
}

Samples alternate(const GpuWork& ours, const GpuWork& yardstick, const GpuSampling& sampling) {
  Samples samples;
  for (int i = -1; i < sampling.samples; ++i) {
    const double a = gpu_seconds(ours.work, sampling.stream), b = gpu_seconds(yardstick.work, sampling.stream);
    if (i < 0) continue;
    samples.ours.push_back(a);
    samples.yardstick.push_back(b);
  }
  return samples;
}

Line named(const std::string& name, const std::string& unit) {
  Line line;
  line.name = name;
  line.unit = unit;
  return line;
}

Line rate_line(const std::string& name, const GpuWork& ours, const GpuWork& yardstick, const std::string& unit, double per_unit,
               std::optional<Goal> goal, const GpuSampling& sampling) {
  const Samples samples = alternate(ours, yardstick, sampling);
  Line line = named(name, unit);
  line.value = ours.amount / median(samples.ours) / per_unit;
  line.yardstick = yardstick.amount / median(samples.yardstick) / per_unit;
  std::vector<double> ratios;
  for (std::size_t i = 0; i < samples.ours.size(); ++i) {
    ratios.push_back(ours.amount / samples.ours[i] / (yardstick.amount / samples.yardstick[i]));
  }
  fill_ratios(line, ratios);
  line.goal = goal;
  return line;
}

Line time_line(const std::string& name, const Samples& samples, double most) {
  Line line = named(name, "ms");
  line.value = median(samples.ours) * 1e3;
  line.yardstick = median(samples.yardstick) * 1e3;
  std::vector<double> ratios;
  for (std::size_t i = 0; i < samples.ours.size(); ++i) ratios.push_back(samples.ours[i] / samples.yardstick[i]);
  fill_ratios(line, ratios);
  line.goal = Goal{most, {}, true};
  return line;
}

std::vector<Line> wrong_or(const std::string& wrong, const std::string& name, const std::function<std::vector<Line>()>& measure) {
  if (wrong.empty()) return measure();
  Line line = named(name, "");
  line.wrong = wrong;
  return {line};
}

}  // namespace periplus::launch::bench
