#pragma once

#include <ctime>

namespace periplus::launch {

/// Processor time of the calling thread: what other programs take of its core is not in it.
inline double cpu_seconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

}  // namespace periplus::launch
