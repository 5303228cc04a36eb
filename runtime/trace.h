#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace periplus {

/// One finished piece of work on one track ("compute", "lane 0", "lane 1") of one rank.
struct TraceEvent {
  std::string name;
  std::string track;
  double begin_us = 0;  ///< Since the tracer's epoch.
  double duration_us = 0;
  int step = -1;        ///< Plan step id.
  std::int64_t bytes = 0;
};

/// Collects the events of one rank. Not thread-safe: one tracer per rank thread.
class Tracer {
 public:
  using Clock = std::chrono::steady_clock;
  explicit Tracer(int rank, Clock::time_point epoch = Clock::now()) : rank_(rank), epoch_(epoch) {}

  double now_us() const { return std::chrono::duration<double, std::micro>(Clock::now() - epoch_).count(); }
  void record(TraceEvent event) { events_.push_back(std::move(event)); }
  const std::vector<TraceEvent>& events() const noexcept { return events_; }
  int rank() const noexcept { return rank_; }
  void clear() { events_.clear(); }

 private:
  int rank_;
  Clock::time_point epoch_;
  std::vector<TraceEvent> events_;
};

/// Chrome-trace JSON (chrome://tracing, ui.perfetto.dev): process = rank, thread = track.
std::string to_chrome_trace(const std::vector<const Tracer*>& tracers);

}  // namespace periplus
