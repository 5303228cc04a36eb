#include "launch/bench/statistics.h"

#include <algorithm>

namespace periplus::launch::bench {

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::ranges::sort(values);
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

std::vector<std::size_t> calm_samples(const std::vector<Sample>& samples, const std::vector<double>& best_peaks) {
  std::vector<std::size_t> calm;
  for (std::size_t i = 0; i < samples.size(); ++i) {
    bool good = true;
    for (std::size_t side = 0; side < samples[i].size(); ++side) {
      const Timing& timing = samples[i][side];
      good &= !timing.interrupted && std::min(timing.peak_before, timing.peak_after) >= kCalmShareOfBest * best_peaks[side];
    }
    if (good) calm.push_back(i);
  }
  return calm;
}

Selection select(const std::vector<Sample>& samples, const std::vector<double>& best_peaks) {
  constexpr std::size_t kLeastCalm = 3;
  Selection selection{{}, samples.size(), false};
  const std::vector<std::size_t> calm = calm_samples(samples, best_peaks);
  if (calm.size() < kLeastCalm) {
    selection.kept = samples;
    selection.noisy = true;
  }
  for (const std::size_t i : calm) {
    if (!selection.noisy) selection.kept.push_back(samples[i]);
  }
  return selection;
}

}  // namespace periplus::launch::bench
