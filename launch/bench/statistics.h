#pragma once

#include <cstddef>
#include <vector>

/// Which samples count, and what they say together. Plain data, so that the rule can be tested without a clock.
namespace periplus::launch::bench {

/// Mean of the two middle values for an even count; 0 for none.
double median(std::vector<double> values);

/// One timed piece of work between two measurements of the machine's peak on the same threads.
struct Timing {
  double seconds = 0;
  double peak_before = 0, peak_after = 0;  ///< GFLOP/s.
  bool interrupted = false;                ///< Another program had the core for part of the time.
  double peak() const noexcept { return (peak_before + peak_after) / 2; }
};

/// One timing for each of the sides that a figure compares, taken in turn.
using Sample = std::vector<Timing>;

/// A peak this much below the best one means that a neighbour is using the machine.
inline constexpr double kCalmShareOfBest = 0.93;

/// Indices of the samples that no neighbour disturbed: never interrupted, and every peak within 7 % of the best of its side,
/// `best_peaks`. All samples have the same sides.
std::vector<std::size_t> calm_samples(const std::vector<Sample>& samples, const std::vector<double>& best_peaks);

struct Selection {
  std::vector<Sample> kept;
  std::size_t taken = 0;
  bool noisy = false;  ///< Fewer than three calm samples, so all were kept.
};
Selection select(const std::vector<Sample>& samples, const std::vector<double>& best_peaks);

}  // namespace periplus::launch::bench
