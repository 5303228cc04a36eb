#include "launch/bench/sampling.h"

#include <algorithm>
#include <chrono>
#include <cstdint>

#include <fmt/format.h>
#include <omp.h>

#include "launch/cpu_seconds.h"

namespace periplus::launch::bench {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

Timing time_side(const Side& side, BestPeaks& peaks) {
  constexpr double kLeastShareOfCore = 0.98;
  omp_set_num_threads(side.threads);
  Timing timing;
  timing.peak_before = peaks.measure(side.unit, side.threads);
  const double cpu_start = cpu_seconds();
  const Clock::time_point start = Clock::now();
  side.work();
  timing.seconds = seconds_since(start);
  timing.interrupted = cpu_seconds() - cpu_start < kLeastShareOfCore * timing.seconds;
  timing.peak_after = peaks.measure(side.unit, side.threads);
  return timing;
}

Sample take_sample(const std::vector<Side>& sides, BestPeaks& peaks) {
  Sample sample;
  for (const Side& side : sides) sample.push_back(time_side(side, peaks));
  return sample;
}

bool is_calm(const Side& side, BestPeaks& peaks) {
  return peaks.measure(side.unit, side.threads) >= kCalmShareOfBest * peaks.best(side.unit, side.threads);
}

std::vector<double> best_of(const std::vector<Side>& sides, const BestPeaks& peaks) {
  std::vector<double> best;
  for (const Side& side : sides) best.push_back(peaks.best(side.unit, side.threads));
  return best;
}

}  // namespace

OneCore::OneCore() : threads_before_(omp_get_max_threads()) {
  CPU_ZERO(&before_);
  sched_getaffinity(0, sizeof before_, &before_);
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(sched_getcpu(), &one);
  sched_setaffinity(0, sizeof one, &one);
  omp_set_num_threads(1);
}

OneCore::~OneCore() {
  sched_setaffinity(0, sizeof before_, &before_);
  omp_set_num_threads(threads_before_);
}

double BestPeaks::measure(Unit unit, int threads) {
  // Interrupts and a tile unit that has slept spoil one burst, a neighbour spoils all.
  constexpr int kBursts = 4;
  double peak = 0;
  for (int i = 0; i < kBursts; ++i) peak = std::max(peak, measure_peak(unit, threads));
  double& best = best_[{unit, threads}];
  best = std::max(best, peak);
  return peak;
}

double BestPeaks::best(Unit unit, int threads) const {
  constexpr double kLeastTimesFma = 10;
  const auto known = best_.find({unit, threads}), fma = best_.find({Unit::fma, 1});
  const double seen = known == best_.end() ? 0 : known->second;
  if (unit != Unit::amx || fma == best_.end()) return seen;
  return std::max(seen, kLeastTimesFma * fma->second * threads);
}

Selection take_samples(const std::vector<Side>& sides, Sampling& sampling) {
  constexpr std::size_t kMostTries = 10;
  const int threads_before = omp_get_max_threads();
  take_sample(sides, sampling.peaks);  // first touch, code paths, frequency
  std::vector<Sample> samples;
  const auto want = static_cast<std::size_t>(sampling.samples);
  std::size_t calm = 0;
  double waited = 0;  // for a calm machine, and in samples that were not calm
  while (calm < want && samples.size() < kMostTries * want) {
    sampling.progress(fmt::format("{} of {} samples", calm, want));
    const bool patient = waited < sampling.patience_seconds;
    if (!patient && samples.size() >= want) break;
    const Clock::time_point start = Clock::now();
    if (!patient || is_calm(sides.front(), sampling.peaks)) samples.push_back(take_sample(sides, sampling.peaks));
    const std::size_t calm_before = calm;
    calm = calm_samples(samples, best_of(sides, sampling.peaks)).size();
    if (calm <= calm_before) waited += seconds_since(start);
  }
  omp_set_num_threads(threads_before);
  return select(samples, best_of(sides, sampling.peaks));
}

}  // namespace periplus::launch::bench
