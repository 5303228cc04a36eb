// Vector work that has time, done slice by slice between tile products. Included by tiles_<unit>.cpp.
//
// A slice is about 50 vector instructions, three tile products. Longer ones would fill the core's window, and the tile unit would wait.
#pragma once

#include "kernels/cpu/lanes.h"

namespace periplus::kernels::cpu {
namespace {

/// A list of jobs, done in order.
class Slices {
 public:
  /// `count` calls of job.slice(i), i = 0 and on. The job must stay where it is until finish().
  template <class Job>
  void add(Job& job, std::int64_t count) {
    list_[jobs_++] = {[](void* self, std::int64_t i) { static_cast<Job*>(self)->slice(i); }, &job, count};
    left_ += count;
  }
  /// Spreads the list over `calls` calls of due().
  void start(std::int64_t calls) {
    if (calls == 0 || left_ == 0) return;
    pace_ = larger(1, calls / left_);
    at_once_ = (left_ + calls - 1) / calls;
    wait_ = pace_;
  }
  /// Between any two products: whether it is time for next().
  [[gnu::always_inline]] bool due() { return --wait_ == 0; }
  /// For 8 vectors of the caller during next().
  float* space() { return space_; }
  [[gnu::noinline]] void next() {
    for (std::int64_t i = 0; i < at_once_ && left_ > 0; ++i) one();
    wait_ = left_ > 0 ? pace_ : kNever;
  }
  /// What is left of the list, which is empty then.
  void finish() {
    while (left_ > 0) one();
    jobs_ = now_ = 0;
    slice_ = 0;
    wait_ = kNever;
  }

 private:
  struct Job {
    void (*slice)(void* self, std::int64_t i);
    void* self;
    std::int64_t count;
  };

  void one() {
    while (slice_ == list_[now_].count) {
      slice_ = 0;
      ++now_;
    }
    --left_;
    list_[now_].slice(list_[now_].self, slice_++);
  }

  static constexpr int kMost = 3;
  static constexpr std::int64_t kNever = std::int64_t{1} << 62;
  Job list_[kMost];
  int jobs_ = 0, now_ = 0;
  std::int64_t slice_ = 0, left_ = 0, pace_ = 0, at_once_ = 0, wait_ = kNever;
  alignas(64) float space_[8 * kLanes];
};

}  // namespace
}  // namespace periplus::kernels::cpu
