// Ranks as threads. A message waits in the queue of its (source, destination, lane) until both ends are posted; whoever
// posts second copies it straight from span to span, or enqueues that copy where the spans are on a device. Over paced links both ends
// learn of it only when it would have arrived; on a device it leaves when both streams have come to it.
#include "runtime/comm/thread_transport.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <list>
#include <mutex>
#include <optional>
#include <thread>

#include <fmt/format.h>

#include "runtime/comm/aborted_by_peer.h"
#include "runtime/comm/paced_network.h"
#include "runtime/cuda/events.h"
#include "runtime/error.h"

namespace periplus::comm {
namespace {

using Clock = std::chrono::steady_clock;

// A waiter spins, then offers its core (the peer may need this very one), and only then sleeps.
constexpr auto kSpin = std::chrono::microseconds(2);
constexpr auto kYield = std::chrono::microseconds(30);

class ThreadOperation;

/// Both ends of an exchange lock the same queues at the same moment, for a few instructions: sleeping for that (as
/// std::mutex does at once) would cost a hundred times the work.
std::unique_lock<std::mutex> lock_spinning(std::mutex& mutex) {
  constexpr int kTries = 200;
  for (int i = 0; i < kTries; ++i) {
    std::unique_lock lock(mutex, std::try_to_lock);
    if (lock) return lock;
  }
  return std::unique_lock(mutex);
}

struct Part {
  int peer = 0;
  bool is_send = false;
  const void* source = nullptr;
  void* destination = nullptr;
  std::size_t bytes = 0;
  cuda::Mark copied;  // sends on a device: behind the copy, on the receiver's stream
  std::atomic<bool> finished{false};
};

struct Waiting {
  ThreadOperation* operation;
  std::size_t part;
};

/// The queues of messages to one rank, and the place where that rank sleeps.
struct Inbox {
  std::mutex mutex;                          // guards `channels`
  std::vector<std::list<Waiting>> channels;  // [source * kLanes + lane]; a list holds sends or receives, never both
  std::mutex sleep_mutex;
  std::condition_variable wake;
};

struct Group {
  Group(int ranks, const TransportOptions& transport_options) : options(transport_options), inboxes(static_cast<std::size_t>(ranks)) {
    for (Inbox& inbox : inboxes) inbox.channels.resize(static_cast<std::size_t>(ranks) * kLanes);
    if (options.links) network.emplace(*options.links, ranks);
  }
  int size() const noexcept { return static_cast<int>(inboxes.size()); }
  Inbox& inbox(int rank) noexcept { return inboxes[static_cast<std::size_t>(rank)]; }

  void wake(int rank) noexcept {
    // The empty critical section keeps the wake-up from falling between a sleeper's check and its sleep.
    { const std::lock_guard lock(inbox(rank).sleep_mutex); }
    inbox(rank).wake.notify_all();
  }

  void abort(std::string_view why) noexcept {
    {
      const std::lock_guard lock(reason_mutex);
      if (aborted) return;
      try {
        reason = why;
      } catch (const std::bad_alloc&) {
        // An abort without a reason is still an abort.
      }
      aborted = true;
    }
    for (int rank = 0; rank < size(); ++rank) wake(rank);
  }

  std::string abort_reason() {
    const std::lock_guard lock(reason_mutex);
    return reason;
  }

  TransportOptions options;
  std::optional<PacedNetwork> network;  // over paced links
  std::vector<Inbox> inboxes;
  std::atomic<bool> aborted{false};
  std::mutex reason_mutex;
  std::string reason;
};

class ThreadTransport final : public Transport, public std::enable_shared_from_this<ThreadTransport> {
 public:
  ThreadTransport(std::shared_ptr<Group> group, int rank) : group_(std::move(group)), rank_(rank) {}
  int rank() const noexcept override { return rank_; }
  int size() const noexcept override { return group_->size(); }
  std::string_view name() const noexcept override { return "thread"; }
  const TransportOptions& options() const noexcept override { return group_->options; }
  std::string refusal(Device) const override { return ""; }
  std::shared_ptr<Operation> post(std::span<const Send> sends, std::span<const Receive> receives, const Purpose& purpose,
                                  StreamView stream) override;
  bool wait_any(std::span<Operation* const> operations, Clock::time_point until) override;
  void progress() noexcept override {}  // whoever posts second has moved the bytes
  void abort(std::string_view reason, AbortCause) noexcept override { group_->abort(reason); }
  Group& group() const noexcept { return *group_; }

 private:
  std::shared_ptr<Group> group_;
  int rank_;
};

/// A peer may copy from or to this operation's memory until `open_` is zero, so neither the operation nor the caller's
/// spans may go away earlier: `cancel` withdraws what no peer has taken and waits for copies under way.
/// On a device a copy is enqueued on the receiver's stream, behind the point that the sender's had reached when it posted. The
/// sender's stream is made to wait for the copies only when all are enqueued: an earlier wait could hold up what this rank
/// receives by what it sends. All waits are for points already recorded, so the streams cannot wait in a circle.
class ThreadOperation final : public Operation {
 public:
  ThreadOperation(std::shared_ptr<ThreadTransport> transport, std::span<const Send> sends, std::span<const Receive> receives,
                  const Purpose& purpose, StreamView stream)
      : transport_(std::move(transport)),
        purpose_(purpose),
        parts_(sends.size() + receives.size()),
        open_(parts_.size()),
        stream_(stream),
        device_(stream.device()),
        sends_(!sends.empty()) {
    if (transport_->group().network) flight_ = std::make_shared<Flight>();
    std::size_t next = 0;
    for (const Receive& receive : receives) {
      Part& part = parts_[next++];
      part.peer = receive.peer;
      part.destination = receive.data;
      part.bytes = receive.bytes;
    }
    for (const Send& send : sends) {
      Part& part = parts_[next++];
      part.peer = send.peer;
      part.is_send = true;
      part.source = send.data;
      part.bytes = send.bytes;
    }
  }
  ThreadOperation(const ThreadOperation&) = delete;
  ThreadOperation& operator=(const ThreadOperation&) = delete;
  ~ThreadOperation() override { cancel(); }

  void post() {
    if (on_device() && (sends_ || flight_)) reached_ = std::make_shared<const cuda::Mark>(stream_);
    for (; posted_ < parts_.size(); ++posted_) match_or_enqueue(posted_);
  }

  bool test() override {
    const bool met = open_.load(std::memory_order_acquire) == 0 && !cancelled_ && !failed_;
    if (met && (!flight_ || arrival() <= Clock::now())) {
      order_after_sends();
      return true;
    }
    throw_if_aborted();
    return false;
  }

  /// When this operation should be looked at again, if nothing wakes its rank before.
  Clock::time_point wake_time() {
    if (open_.load(std::memory_order_acquire) != 0) return Clock::time_point::max();
    return flight_ ? arrival() : Clock::time_point();
  }

  std::string describe() const override {
    return describe_open(purpose_, parts_, [](const Part& part) { return !part.finished.load(std::memory_order_relaxed); });
  }

  Transport& transport() const noexcept override { return *transport_; }

 private:
  /// Over paced links: when the last message arrives, or the next message of the network if it is still moving.
  Clock::time_point arrival() {
    if (open_.load(std::memory_order_acquire) != 0) return Clock::time_point::max();
    if (flight_->moving()) {
      const Clock::time_point next = group().network->advance();
      if (flight_->moving()) return next;
    }
    return flight_->arrives();
  }

  Group& group() const noexcept { return transport_->group(); }

  Inbox& inbox_of(const Part& part) const noexcept { return group().inbox(part.is_send ? part.peer : transport_->rank()); }

  /// Guarded by the mutex of inbox_of(part).
  std::list<Waiting>& channel_of(const Part& part) const noexcept {
    const int source = part.is_send ? transport_->rank() : part.peer;
    return inbox_of(part).channels[static_cast<std::size_t>(source * kLanes + purpose_.lane)];
  }

  void match_or_enqueue(std::size_t index) {
    Part& mine = parts_[index];
    Waiting other{};
    {
      const std::unique_lock lock = lock_spinning(inbox_of(mine).mutex);
      std::list<Waiting>& waiting = channel_of(mine);
      if (waiting.empty() || waiting.front().operation->parts_[waiting.front().part].is_send == mine.is_send) {
        waiting.push_back({this, index});
        return;
      }
      other = waiting.front();
      require_agreement(mine, other);
      waiting.pop_front();
    }
    // Popped but not finished: the other side's `cancel` waits for this copy.
    const Part& theirs = other.operation->parts_[other.part];
    const int peer = mine.peer, self = transport_->rank();
    if (flight_) {
      std::function<bool()> reached;
      if (on_device()) reached = [ends = std::array{reached_, other.operation->reached_}] { return ends[0]->done() && ends[1]->done(); };
      group().network->post(mine.is_send ? self : peer, mine.is_send ? peer : self, mine.bytes, {flight_, other.operation->flight_},
                            std::move(reached));
    }
    if (on_device()) {
      enqueue_copy(mine, other);
    } else {
      std::memcpy(mine.is_send ? theirs.destination : mine.destination, mine.is_send ? mine.source : theirs.source, mine.bytes);
    }
    if (other.operation->finish(other.part)) group().wake(peer);
    finish(index);
  }

  bool on_device() const noexcept { return device_.kind == DeviceKind::cuda; }

  void enqueue_copy(Part& mine, const Waiting& other) {
    Part& theirs = other.operation->parts_[other.part];
    Part& send = mine.is_send ? mine : theirs;
    const StreamView stream = mine.is_send ? other.operation->stream_ : stream_;
    try {
      (mine.is_send ? reached_ : other.operation->reached_)->order(stream);
      cuda::copy_bytes(mine.is_send ? theirs.destination : mine.destination, send.source, send.bytes, stream);
      send.copied = cuda::Mark(stream);
    } catch (const std::exception& error) {
      group().abort(error.what());
      other.operation->failed_ = true;
      if (other.operation->finish(other.part)) group().wake(mine.peer);
      throw;
    }
  }

  /// What this rank sent may be overwritten by later work on its stream.
  void order_after_sends() {
    if (!on_device() || settled_) return;
    for (const Part& part : parts_) part.copied.order(stream_);
    settled_ = true;
  }

  /// Copies that are enqueued cannot be taken back: after this none is left that reads or writes the caller's spans.
  void wait_for_copies() noexcept {
    settled_ = true;
    try {
      for (const Part& part : parts_) part.copied.wait();
      cuda::synchronize(stream_);
    } catch (const std::exception&) {
      // The device has failed: it runs nothing any more.
    }
  }

  /// True if that was the last message. The operation may be gone when this returns.
  bool finish(std::size_t index) noexcept {
    parts_[index].finished.store(true, std::memory_order_relaxed);
    return open_.fetch_sub(1, std::memory_order_acq_rel) == 1;
  }

  /// Called with the channel locked, which keeps the other operation alive.
  void require_agreement(const Part& mine, const Waiting& other) {
    const ThreadOperation& theirs = *other.operation;
    const Part& their_part = theirs.parts_[other.part];
    const bool sizes = mine.bytes == their_part.bytes;
    if (sizes && device_.kind == theirs.device_.kind) return;
    const auto side = [](const ThreadOperation& operation, const Part& part) {
      return fmt::format("rank {} {} {} bytes{} in '{}' (plan step {}, lane {})", operation.transport_->rank(),
                         part.is_send ? "sends" : "receives", part.bytes,
                         operation.on_device() ? " of " + to_string(operation.device_) + " memory" : "", operation.purpose_.operation,
                         operation.purpose_.step, operation.purpose_.lane);
    };
    const std::string message =
        fmt::format("message {} disagree: {}, but {}; every rank must execute the same program{}", sizes ? "ends" : "sizes",
                    side(*this, mine), side(theirs, their_part), sizes ? ", with streams on the same kind of device" : "");
    group().abort(message);
    throw CommError(message);
  }

  void throw_if_aborted() {
    if (!group().aborted && !cancelled_) return;
    const std::string what = describe();
    cancel();
    throw AbortedByPeer(
        fmt::format("rank {} of {}: {} cannot finish: {}", transport_->rank(), transport_->size(), what, group().abort_reason()));
  }

  void cancel() noexcept {
    if (open_.load(std::memory_order_acquire) != 0) {
      cancelled_ = true;
      for (std::size_t index = 0; index < parts_.size(); ++index) {
        if (index >= posted_ || withdraw(index)) open_.fetch_sub(1, std::memory_order_acq_rel);
      }
      while (open_.load(std::memory_order_acquire) != 0) std::this_thread::yield();
    }
    if (on_device() && !settled_) wait_for_copies();
  }

  bool withdraw(std::size_t index) noexcept {
    const std::lock_guard lock(inbox_of(parts_[index]).mutex);
    return std::erase_if(channel_of(parts_[index]), [&](const Waiting& entry) { return entry.operation == this && entry.part == index; }) >
           0;
  }

  std::shared_ptr<ThreadTransport> transport_;
  Purpose purpose_;
  std::vector<Part> parts_;
  std::atomic<std::size_t> open_;   // messages not yet copied, or enqueued
  std::shared_ptr<Flight> flight_;  // over paced links
  StreamView stream_;               // dangles soon unless it is one of a device
  Device device_;
  bool sends_;
  std::shared_ptr<const cuda::Mark> reached_;  // on a device: where the stream was when this was posted; of sends, or over paced links
  std::atomic<bool> failed_ = false;           // a peer could not enqueue a copy
  bool settled_ = false;                       // on a device: the spans are left to the stream
  std::size_t posted_ = 0;
  bool cancelled_ = false;
};

std::shared_ptr<Operation> ThreadTransport::post(std::span<const Send> sends, std::span<const Receive> receives, const Purpose& purpose,
                                                 StreamView stream) {
  auto operation = std::make_shared<ThreadOperation>(shared_from_this(), sends, receives, purpose, stream);
  if (group_->aborted) operation->test();  // throws
  operation->post();
  return operation;
}

bool ThreadTransport::wait_any(std::span<Operation* const> operations, Clock::time_point until) {
  const auto any_done = [&] { return std::ranges::any_of(operations, [](Operation* operation) { return operation->test(); }); };
  const Clock::time_point start = Clock::now();
  for (Clock::time_point now = start; now < std::min(until, start + kYield); now = Clock::now()) {
    if (any_done()) return true;
    if (now > start + kSpin) std::this_thread::yield();
  }
  Inbox& own = group_->inbox(rank_);
  while (!any_done()) {
    if (Clock::now() >= until) return false;
    std::unique_lock lock(own.sleep_mutex);
    // A message may have met its end or the group may have failed since; both wake this rank under the mutex from here on.
    Clock::time_point next = until;
    bool sleep = !group_->aborted;
    for (Operation* operation : operations) {
      auto* const mine = static_cast<ThreadOperation*>(operation);
      next = std::min(next, mine->wake_time());
      sleep = sleep && next > Clock::now();
    }
    if (sleep) own.wake.wait_until(lock, next);
  }
  return true;
}

}  // namespace

std::vector<Communicator> make_thread_group(int ranks, const TransportOptions& options) {
  if (ranks < 1) throw InvalidArgument(fmt::format("make_thread_group: {} ranks; at least one is needed", ranks));
  const auto group = std::make_shared<Group>(ranks, options);
  std::vector<Communicator> communicators;
  for (int rank = 0; rank < ranks; ++rank) communicators.emplace_back(std::make_shared<ThreadTransport>(group, rank));
  return communicators;
}

}  // namespace periplus::comm
