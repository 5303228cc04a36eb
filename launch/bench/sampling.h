#pragma once

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <sched.h>

#include "launch/bench/peaks.h"
#include "launch/bench/statistics.h"

/// Timing on a machine that others use too: sides alternate, every piece of work stands between two measurements of the
/// machine's peak, and samples that a neighbour disturbed are taken again.
namespace periplus::launch::bench {

/// Keeps the calling thread on the core it is on, with an OpenMP team of one. Threads made meanwhile would inherit the one
/// core, so nothing parallel may run inside.
class OneCore {
 public:
  OneCore();
  ~OneCore();
  OneCore(const OneCore&) = delete;
  OneCore& operator=(const OneCore&) = delete;

 private:
  cpu_set_t before_;
  int threads_before_;
};

struct Side {
  std::function<void()> work;
  Unit unit = Unit::fma;  ///< Whose peak is measured around the work.
  int threads = 1;
};

/// The best peaks of the process so far: what the machine gives when nobody else uses it.
class BestPeaks {
 public:
  /// Measures for a moment and returns the peak.
  double measure(Unit unit, int threads);
  /// For AMX at least ten times the peak of FMA: with random data the tile unit does sixteen times as much, until neighbours
  /// use up the processor's power; then it may run at a quarter of its rate for minutes.
  double best(Unit unit, int threads) const;

 private:
  std::map<std::pair<Unit, int>, double> best_;
};

using Progress = std::function<void(const std::string&)>;

struct Sampling {
  int samples = 7;
  double patience_seconds = 10;  ///< For one figure, beyond the time of its samples on a calm machine.
  Progress progress = [](const std::string&) {};
  BestPeaks peaks{};
};

/// Works each side once untimed, then takes samples until enough are calm, or ten times as many are taken, or patience ends.
/// Before a sample it waits for the peak of the first side.
Selection take_samples(const std::vector<Side>& sides, Sampling& sampling);

}  // namespace periplus::launch::bench
