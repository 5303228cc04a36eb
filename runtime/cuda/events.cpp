#include "runtime/cuda/events.h"

#include <map>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace periplus::cuda {
namespace {

class Pool {
 public:
  Event take(int device) {
    {
      const std::lock_guard lock(mutex_);
      std::vector<Event>& events = free_[device];
      if (!events.empty()) {
        Event event = std::move(events.back());
        events.pop_back();
        return event;
      }
    }
    return Event(device);
  }
  void give(int device, Event event) noexcept {
    const std::lock_guard lock(mutex_);
    try {
      free_[device].push_back(std::move(event));
    } catch (const std::bad_alloc&) {
      // One event fewer to reuse.
    }
  }

 private:
  std::mutex mutex_;
  std::map<int, std::vector<Event>> free_;
};

Pool& pool() {
  static Pool& events = *new Pool;  // never destroyed: at exit the driver may be gone before it
  return events;
}

}  // namespace

Mark::Mark(StreamView stream) : event_(pool().take(stream.device().index)), device_(stream.device().index) { event_.record(stream); }

Mark::~Mark() {
  if (device_ >= 0) pool().give(device_, std::move(event_));
}

void Mark::order(StreamView stream) const {
  if (device_ >= 0) event_.order(stream);
}

bool Mark::done() const { return device_ < 0 || event_.done(); }

void Mark::wait() const {
  if (device_ >= 0) event_.wait();
}

}  // namespace periplus::cuda
