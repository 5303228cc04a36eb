#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/cuda/device.h"

namespace periplus {

/// One end of a message: an arrow of the trace starts at the event that sends it and ends at the one that receives it.
struct TraceMessage {
  int peer = 0;  ///< Rank of the tracer at the other end.
  bool sent = false;
};

/// One finished piece of work on one track ("compute", "lane 0", "lane 1") of one rank.
struct TraceEvent {
  std::string name;
  std::string track;
  double begin_us = 0;  ///< Since the tracer's epoch.
  double duration_us = 0;
  int step = -1;  ///< Plan step id.
  std::int64_t bytes = 0;
  std::vector<TraceMessage> messages = {};  ///< In posted order.
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
  Clock::time_point epoch() const noexcept { return epoch_; }

  /// A moment of a CUDA device, as an event of it and on the host's clock.
  struct Anchor {
    cuda::Event event;
    Clock::time_point moment;
  };
  /// Ties the time of the stream's device to the tracer's. Waits until the stream has passed, unless that has been done since the last
  /// restart; does nothing on a CPU stream. Tracers of one process that do so within seconds share the moment, so that ranks on one device
  /// are as exact to each other as the device is; to the host it is some tens of microseconds.
  void anchor(StreamView stream);
  /// When an event of the device passed, in the tracer's time.
  double us_of(const Anchor& anchor, const cuda::Event& event) const {
    return std::chrono::duration<double, std::micro>(anchor.moment - epoch_).count() + 1e6 * event.seconds_since(anchor.event);
  }
  const std::shared_ptr<const Anchor>& anchored() const noexcept { return anchor_; }
  /// An event whose times are not known yet: settle() asks `event` for it.
  void record_later(std::function<TraceEvent()> event) { later_.push_back(std::move(event)); }
  /// Records what was left for later. Call it when the streams have passed that.
  void settle();

  /// Forgets all events and counts time from `epoch` on, which is one for ranks whose tracks should line up.
  void restart(Clock::time_point epoch = Clock::now()) {
    events_.clear();
    later_.clear();
    anchor_.reset();
    epoch_ = epoch;
  }

 private:
  int rank_;
  Clock::time_point epoch_;
  std::vector<TraceEvent> events_;
  std::vector<std::function<TraceEvent()>> later_;
  std::shared_ptr<const Anchor> anchor_;
};

/// Times work on a stream. On a CPU stream: from here to end(). On a CUDA device: from when the stream comes to this point until it
/// has passed that of end(), which is known when the tracer settles; the tracer must be anchored there.
class TraceSpan {
 public:
  TraceSpan() = default;  ///< Of no tracer: nothing is recorded.
  TraceSpan(Tracer* tracer, StreamView stream);
  /// Records the event with its times filled in.
  void end(TraceEvent event);

 private:
  Tracer* tracer_ = nullptr;
  std::optional<StreamView> stream_;  ///< Of a device.
  double begin_us_ = 0;
  cuda::Event begin_;
};

/// Chrome-trace JSON (chrome://tracing, ui.perfetto.dev): process = rank, thread = track, arrows from send to receive. As
/// transports do, it pairs the k-th message that a rank sends to another on a track with the k-th that the other receives on
/// its track of that name; a message that lacks one end (it lies outside of the trace) gets no arrow.
std::string to_chrome_trace(const std::vector<const Tracer*>& tracers);

}  // namespace periplus
