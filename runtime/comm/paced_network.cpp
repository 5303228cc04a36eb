#include "runtime/comm/paced_network.h"

#include <algorithm>

namespace periplus::comm {
namespace {

constexpr double kFar = 1e9;  // seconds
constexpr auto kPollStreams = std::chrono::microseconds(20);

}  // namespace

void Flight::arrives_by(Clock::time_point time) noexcept {
  const Clock::rep ticks = time.time_since_epoch().count();
  Clock::rep latest = arrives_.load(std::memory_order_relaxed);
  while (ticks > latest && !arrives_.compare_exchange_weak(latest, ticks, std::memory_order_relaxed)) {
  }
  moving_.fetch_sub(1, std::memory_order_release);
}

void PacedNetwork::post(int from, int to, std::size_t bytes, const std::array<std::shared_ptr<Flight>, 2>& ends,
                        std::function<bool()> reached) {
  const std::lock_guard lock(mutex_);
  for (const std::shared_ptr<Flight>& end : ends) end->moving_.fetch_add(1, std::memory_order_relaxed);
  const Waiting message{from, to, bytes, ends, std::move(reached)};
  message.reached ? waiting_.push_back(message) : start(message);
}

void PacedNetwork::start(const Waiting& message) {
  network_.start(message.from, message.to, static_cast<std::int64_t>(message.bytes), now());
  flights_.push_back(message.ends);
}

PacedNetwork::Clock::time_point PacedNetwork::advance() {
  const std::lock_guard lock(mutex_);
  arrivals_.clear();
  network_.advance(now(), arrivals_);
  for (const Network::Arrival& arrival : arrivals_) {
    for (std::shared_ptr<Flight>& end : flights_[arrival.message]) {
      end->arrives_by(time_point(arrival.time));
      end.reset();
    }
  }
  std::erase_if(waiting_, [this](const Waiting& message) {
    if (!message.reached()) return false;
    start(message);
    return true;
  });
  const double next = network_.next_end();
  const Clock::time_point end = next > kFar ? Clock::time_point::max() : time_point(next);
  return waiting_.empty() ? end : std::min(end, Clock::now() + kPollStreams);
}

}  // namespace periplus::comm
