#include "runtime/trace.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "runtime/error.h"

namespace periplus {
namespace {

// Names that are not UTF-8 must not make the whole trace unwritable.
std::string quoted(const std::string& text) { return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace); }

/// Messages of one sender, receiver and track, in order: where their arrows start and end.
struct Route {
  struct End {
    int thread = 0;
    double at_us = 0;
  };
  std::vector<End> starts, ends;
};

class ChromeTraceWriter {
 public:
  explicit ChromeTraceWriter(const std::vector<const Tracer*>& tracers) {
    for (const Tracer* tracer : tracers) {
      for (const TraceEvent& event : tracer->events()) threads_[{tracer->rank(), event.track}];
    }
    // Viewers sort threads by number: those of a rank in the order of their names.
    int next = 0;
    for (auto& [track, thread] : threads_) thread = next++;
    for (const auto& [track, thread] : threads_) {
      append(R"({{"ph":"M","name":"thread_name","pid":{},"tid":{},"args":{{"name":{}}}}})", track.first, thread, quoted(track.second));
    }
  }

  void write(const Tracer& tracer) {
    const int process = tracer.rank();
    append(R"({{"ph":"M","name":"process_name","pid":{},"args":{{"name":"rank {}"}}}})", process, process);
    append(R"({{"ph":"M","name":"process_sort_index","pid":{},"args":{{"sort_index":{}}}}})", process, process);
    for (const TraceEvent& event : tracer.events()) {
      const int thread = threads_.at({process, event.track});
      append(R"({{"ph":"X","name":{},"pid":{},"tid":{},"ts":{:.3f},"dur":{:.3f},"args":{{"step":{},"bytes":{}}}}})", quoted(event.name),
             process, thread, event.begin_us, event.duration_us, event.step, event.bytes);
      for (const TraceMessage& message : event.messages) add_to_route(process, event, thread, message);
    }
  }

  std::string finish() {
    int id = 0;
    for (const auto& [way, route] : routes_) {
      const auto& [from, to, track] = way;
      for (std::size_t k = 0; k < std::min(route.starts.size(), route.ends.size()); ++k, ++id) {
        append(R"({{"ph":"s","name":"message","cat":"message","id":{},"pid":{},"tid":{},"ts":{:.3f}}})", id, from, route.starts[k].thread,
               route.starts[k].at_us);
        append(R"({{"ph":"f","bp":"e","name":"message","cat":"message","id":{},"pid":{},"tid":{},"ts":{:.3f}}})", id, to,
               route.ends[k].thread, route.ends[k].at_us);
      }
    }
    return "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[" + events_ + "\n]}\n";
  }

 private:
  template <class... Arguments>
  void append(fmt::format_string<Arguments...> pattern, Arguments&&... arguments) {
    events_ += events_.empty() ? "\n" : ",\n";
    fmt::format_to(std::back_inserter(events_), pattern, std::forward<Arguments>(arguments)...);
  }

  void add_to_route(int process, const TraceEvent& event, int thread, const TraceMessage& message) {
    Route& route = routes_[message.sent ? std::tuple(process, message.peer, event.track) : std::tuple(message.peer, process, event.track)];
    // A viewer ties an end to the event that it lies in, and an event does not hold its last instant.
    constexpr double kInside = 0.002;
    const double last = event.begin_us + std::max(0.0, event.duration_us - kInside);
    (message.sent ? route.starts : route.ends).push_back({thread, message.sent ? event.begin_us : last});
  }

  std::string events_;
  std::map<std::pair<int, std::string>, int> threads_;         // several tracers may belong to one rank
  std::map<std::tuple<int, int, std::string>, Route> routes_;  // by sender, receiver, track
};

/// Looks at both clocks. A device that others use too takes an event late, so that it lies near the second of two looks at the host's;
/// by how much depends on how soon this thread wakes up, for which the shortest of some tries is the best.
std::shared_ptr<const Tracer::Anchor> take_anchor(StreamView stream) {
  constexpr int kTries = 8;
  cuda::synchronize(stream);
  Tracer::Clock::duration shortest = Tracer::Clock::duration::max();
  std::shared_ptr<Tracer::Anchor> best;
  for (int i = 0; i < kTries; ++i) {
    auto one = std::make_shared<Tracer::Anchor>(Tracer::Anchor{cuda::Event(stream.device().index, true), {}});
    const Tracer::Clock::time_point before = Tracer::Clock::now();
    one->event.record(stream);
    one->event.wait();
    one->moment = Tracer::Clock::now();
    if (best && one->moment - before >= shortest) continue;
    shortest = one->moment - before;
    best = std::move(one);
  }
  return best;
}

/// The last anchor of the device if it is of the last seconds, else a new one: ranks that each took their own were 240 us apart. Not an
/// older one, since a time since an event is a float of milliseconds, which resolves half a microsecond after 8 seconds.
std::shared_ptr<const Tracer::Anchor> shared_anchor(StreamView stream) {
  constexpr std::chrono::seconds kLongest{4};
  static std::mutex mutex;
  // Never destroyed: at exit the driver may be gone before it.
  static auto& anchors = *new std::map<int, std::shared_ptr<const Tracer::Anchor>>;
  const std::lock_guard lock(mutex);
  std::shared_ptr<const Tracer::Anchor>& anchor = anchors[stream.device().index];
  if (!anchor || Tracer::Clock::now() - anchor->moment > kLongest) anchor = take_anchor(stream);
  return anchor;
}

}  // namespace

void Tracer::anchor(StreamView stream) {
  if (stream.device().kind == DeviceKind::cpu || anchor_) return;
  anchor_ = shared_anchor(stream);
}

void Tracer::settle() {
  for (const std::function<TraceEvent()>& event : later_) events_.push_back(event());
  later_.clear();
}

TraceSpan::TraceSpan(Tracer* tracer, StreamView stream) : tracer_(tracer) {
  if (tracer == nullptr) return;
  if (stream.device().kind == DeviceKind::cpu) {
    begin_us_ = tracer->now_us();
    return;
  }
  if (!tracer->anchored()) throw InternalError("trace: the time of a device is asked for before its tracer is anchored there");
  stream_ = stream;
  begin_ = cuda::Event(stream.device().index, true);
  begin_.record(stream);
}

void TraceSpan::end(TraceEvent event) {
  if (tracer_ == nullptr) return;
  if (!stream_) {
    event.begin_us = begin_us_;
    event.duration_us = tracer_->now_us() - begin_us_;
    return tracer_->record(std::move(event));
  }
  struct Times {
    cuda::Event begin, end;
  };
  const auto times = std::make_shared<Times>(std::move(begin_), cuda::Event(stream_->device().index, true));
  times->end.record(*stream_);
  tracer_->record_later([times, tracer = tracer_, anchor = tracer_->anchored(), event = std::move(event)]() mutable {
    event.begin_us = tracer->us_of(*anchor, times->begin);
    event.duration_us = 1e6 * times->end.seconds_since(times->begin);
    return std::move(event);
  });
}

std::string to_chrome_trace(const std::vector<const Tracer*>& tracers) {
  ChromeTraceWriter writer(tracers);
  for (const Tracer* tracer : tracers) writer.write(*tracer);
  return writer.finish();
}

}  // namespace periplus
