#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "runtime/comm/pacing.h"

namespace periplus::comm {

/// What one end's operation over paced links still waits for after its messages have met their other ends.
class Flight {
 public:
  using Clock = std::chrono::steady_clock;
  bool moving() const noexcept { return moving_.load(std::memory_order_acquire) > 0; }
  /// Of the message that arrives last, once none is moving.
  Clock::time_point arrives() const noexcept { return Clock::time_point(Clock::duration(arrives_.load(std::memory_order_relaxed))); }

 private:
  friend class PacedNetwork;
  void arrives_by(Clock::time_point time) noexcept;
  std::atomic<int> moving_{0};
  std::atomic<Clock::rep> arrives_{0};
};

/// The links of ranks that are threads, by the wall clock. Nothing happens by itself: whoever waits asks `advance`.
class PacedNetwork {
 public:
  using Clock = Flight::Clock;
  PacedNetwork(const Links& links, int ranks) : network_(links, ranks) {}

  /// A message that both ends have posted. It starts to move at once, or on a device when `reached` says that the streams of both
  /// ends have come to it.
  void post(int from, int to, std::size_t bytes, const std::array<std::shared_ptr<Flight>, 2>& ends, std::function<bool()> reached = {});
  /// Starts what can start, tells the ends of messages that have left by now, and says when to ask again.
  Clock::time_point advance();

 private:
  struct Waiting {
    int from, to;
    std::size_t bytes;
    std::array<std::shared_ptr<Flight>, 2> ends;
    std::function<bool()> reached;
  };
  double now() const { return std::chrono::duration<double>(Clock::now() - begin_).count(); }
  Clock::time_point time_point(double seconds) const {
    return begin_ + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  }
  void start(const Waiting& message);

  std::mutex mutex_;  // guards all
  Network network_;
  std::vector<Waiting> waiting_;                                 // for streams to reach them
  std::vector<std::array<std::shared_ptr<Flight>, 2>> flights_;  // by message of the network
  std::vector<Network::Arrival> arrivals_;
  const Clock::time_point begin_ = Clock::now();
};

}  // namespace periplus::comm
