#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>

#include <omp.h>

#include "runtime/device.h"

/// Dynamic scheduling of a kernel's tiles over the calling thread's OpenMP team.
namespace periplus::kernels::cpu {

/// The stream's progress hook for thread 0 and nothing for the others. Plain data for code of other instruction sets.
struct Progress {
  void (*call)(void*);
  void* context;
  void operator()() const { call(context); }
};

/// Calls the hook about every 10 us of work: often enough for messages to move, and seldom enough to cost nothing.
class Pacer {
 public:
  [[gnu::always_inline]] explicit Pacer(const Progress& progress) : progress_(progress) {}
  [[gnu::always_inline]] void did(double flop) {
    flop_ += flop;
    if (flop_ < kFlopPerCall) return;
    flop_ = 0;
    progress_.call(progress_.context);
  }

 private:
  static constexpr double kFlopPerCall = 1e7;
  Progress progress_;
  double flop_ = 0;
};

/// An exception must not leave an OpenMP region: it is kept here and thrown again by the thread that called the kernel.
class TeamError {
 public:
  void keep() noexcept {
    if (!taken_.exchange(true)) error_ = std::current_exception();
  }
  bool any() const noexcept { return taken_.load(std::memory_order_relaxed); }
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::atomic<bool> taken_{false};
  std::exception_ptr error_;
};

/// Calls the hook of the stream until it throws once.
class HookedProgress {
 public:
  explicit HookedProgress(StreamView stream) : stream_(stream) {}
  Progress hook() noexcept {
    return {[](void* self) { static_cast<HookedProgress*>(self)->run(); }, this};
  }
  void rethrow() const { error_.rethrow(); }

 private:
  void run() noexcept {
    if (error_.any()) return;
    try {
      stream_.progress();
    } catch (...) {
      error_.keep();
    }
  }
  StreamView stream_;
  TeamError error_;
};

/// Threads worth waking for this much work.
inline int team_size(std::int64_t items, double flop) {
  constexpr double kFlopPerThread = 2e6;
  const auto useful = std::min<std::int64_t>(items, static_cast<std::int64_t>(flop / kFlopPerThread));
  return static_cast<int>(std::clamp<std::int64_t>(useful, 1, omp_get_max_threads()));
}

/// Calls body(item, thread, progress) for every item, taken in rising order, on `team` threads. Thread 0 is the caller and
/// keeps calling the hook until the last thread is done.
template <class Body>
void for_each_item_on(int team, std::int64_t items, StreamView stream, const Body& body) {
  std::atomic<std::int64_t> next{0};
  std::atomic<int> working{0};
  TeamError error;
  HookedProgress hooked(stream);
  const auto work = [&](int thread) {
    const Progress progress = thread == 0 ? hooked.hook() : Progress{[](void*) {}, nullptr};
    working.fetch_add(1, std::memory_order_relaxed);
    progress();  // at least once, even if the others take every item
    try {
      for (std::int64_t item = next.fetch_add(1); item < items && !error.any(); item = next.fetch_add(1)) {
        body(item, thread, progress);
        progress();
      }
    } catch (...) {
      error.keep();
    }
    working.fetch_sub(1, std::memory_order_release);
    while (thread == 0 && working.load(std::memory_order_acquire) > 0) {
      progress();
      std::this_thread::yield();
    }
  };
  if (team == 1) {
    work(0);
  } else {
#pragma omp parallel num_threads(team)
    work(omp_get_thread_num());
  }
  error.rethrow();
  hooked.rethrow();
}

template <class Body>
void for_each_item(std::int64_t items, double flop, StreamView stream, const Body& body) {
  for_each_item_on(team_size(items, flop), items, stream, [&](std::int64_t item, int, const Progress& progress) { body(item, progress); });
}

}  // namespace periplus::kernels::cpu
