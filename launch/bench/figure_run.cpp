// Runs the figures of a suite that times kernels, one line each.
#include "launch/bench/figure_run.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <omp.h>

#include "kernels/cpu_level.h"
#include "launch/bench/figure_lines.h"
#include "launch/commands.h"
#include "launch/ranks.h"
#include "runtime/error.h"

namespace periplus::launch::bench {
namespace {

using kernels::CpuLevel;

std::string cpu_model() {
  std::ifstream lines("/proc/cpuinfo");
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("model name")) return line.substr(std::min(line.size(), line.find(':') + 2));
  }
  return "unknown CPU";
}

/// One core's best, given some time: a neighbour may be using the machine just now.
double find_peak(Unit unit, BestPeaks& peaks) {
  constexpr int kTries = 500;
  const OneCore pinned;
  for (int i = 0; i < kTries; ++i) {
    const double peak = peaks.measure(unit, 1);
    if (i >= 10 && peak >= kCalmShareOfBest * peaks.best(unit, 1)) return peak;
  }
  return peaks.measure(unit, 1);
}

void print_machine(bool json, BestPeaks& peaks) {
  const bool has_amx = has_unit(Unit::amx), has_dot = has_unit(Unit::dot);
  const double fma = find_peak(Unit::fma, peaks), dot = has_dot ? find_peak(Unit::dot, peaks) : 0;
  const double amx = has_amx ? find_peak(Unit::amx, peaks) : 0;
  const bool throttled = has_amx && amx < kCalmShareOfBest * peaks.best(Unit::amx, 1);
  const std::string level(to_string(kernels::cpu_level()));
  if (json) {
    nlohmann::ordered_json machine = {{"cpu", cpu_model()}, {"level", level}, {"cores", omp_get_num_procs()}};
    machine["threads"] = omp_get_max_threads();
    machine["fma_peak_gflops"] = std::round(fma);
    machine["dot_peak_gflops"] = has_dot ? nlohmann::ordered_json(std::round(dot)) : nlohmann::ordered_json(nullptr);
    machine["amx_peak_gflops"] = has_amx ? nlohmann::ordered_json(std::round(amx)) : nlohmann::ordered_json(nullptr);
    machine["amx_throttled"] = throttled;
    return print_line(nlohmann::ordered_json{{"id", "machine"}, {"machine", machine}}.dump());
  }
  const auto rate = [](bool present, double peak) { return present ? fmt::format("{:.0f} GFLOP/s", peak) : "absent"; };
  print_line(
      fmt::format("{}, level {}, {} cores, {} threads; peaks of one core with random data: FMA f32 {}, dot products bf16 {}, AMX bf16 {}",
                  cpu_model(), level, omp_get_num_procs(), omp_get_max_threads(), rate(true, fma), rate(has_dot, dot), rate(has_amx, amx)));
  if (throttled) print_line("The tile unit is throttled, by neighbours or heat: shares of the AMX peak will be noisy and decide nothing.");
  print_line("Ratios are medians over the calm samples; a sample is calm if the peaks beside it are within 7 % of the best.");
}

}  // namespace

void add_sampling_options(OptionTable& table, std::string& only, Sampling& sampling) {
  table.add({.flag = "only", .target = &only, .value = "IDS", .help = "Figures to measure, separated by commas; default: all."});
  table.add({.flag = "samples",
             .target = &sampling.samples,
             .value = "N",
             .help = "Calm samples of each figure; the median counts.",
             .least = 3,
             .most = 1000});
  table.add({.flag = "patience",
             .target = &sampling.patience_seconds,
             .value = "S",
             .help = "Seconds to wait for a calm machine, for each figure.",
             .least = 0,
             .most = 3600});
}

int run_figures(const OptionTable& table, std::vector<Figure> figures, const std::string& only, Sampling& sampling) {
  keep_chosen(figures, only);
  if (kernels::cpu_level() == CpuLevel::emulated_amx) {
    throw InvalidArgument("level emulated_amx is slow on purpose and only for tests; choose another PERIPLUS_CPU_LEVEL");
  }
  print_machine(table.json(), sampling.peaks);
  return print_figures(table.json(), figures, sampling) ? kFailedCheck : kOk;
}

}  // namespace periplus::launch::bench
