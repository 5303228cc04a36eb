// Ranks as owners of one GPU each. An exchange is one grouped NCCL call in the stream it is given: the host knows only that
// the call is in the stream, and a watchdog looks after it from there. Messages in host memory, which digests and figures
// are, take the way of the bootstrap.
#include "runtime/comm/nccl_transport.h"

#include <algorithm>
#include <array>
#include <deque>
#include <optional>
#include <thread>

#include <fmt/format.h>

#include "runtime/comm/nccl_connect.h"
#include "runtime/error.h"

namespace periplus::comm::nccl {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kWatch = std::chrono::milliseconds(20);

struct Exchange {
  std::string operation;
  int step;
  int lane;
  std::vector<Send> sends;
  std::vector<Receive> receives;
  StreamView stream;
  void* gathered = nullptr;  // of an all-gather: where the share of rank 0 lies
  bool launched = false;
  bool done = false;  // in the stream
  // Of the watchdog, once done:
  std::function<bool()> begun{}, passed{};  // empty where the host runs the stream
  std::optional<Clock::time_point> begun_at{};

  std::string describe() const { return describe_exchange({operation, step, lane}, sends, receives); }
};

struct Failure {
  std::string text;
  Result result;
};

/// Of an all-gather. Rank 0 is the only one that receives nothing from it.
void* place_of_rank_0(std::span<const Send> sends, std::span<const Receive> receives) {
  return receives.front().peer == 0 ? receives.front().data : const_cast<void*>(sends.front().data);
}

class NcclTransport final : public Transport, public std::enable_shared_from_this<NcclTransport> {
 public:
  NcclTransport(int rank, Connection connection, const TransportOptions& options, RecordMark record_mark, std::optional<Communicator> host)
      : options_(options),
        rank_(rank),
        size_(connection.size),
        device_(connection.device),
        lanes_(std::move(connection.lanes)),
        record_mark_(std::move(record_mark)),
        host_(std::move(host)) {
    watchdog_ = std::thread([this] { watch(); });
  }
  NcclTransport(const NcclTransport&) = delete;
  NcclTransport& operator=(const NcclTransport&) = delete;
  ~NcclTransport() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    watchdog_.join();
    if (!failure_) lanes_->close();
  }

  int rank() const noexcept override { return rank_; }
  int size() const noexcept override { return size_; }
  std::string_view name() const noexcept override { return "nccl"; }
  const TransportOptions& options() const noexcept override { return options_; }
  std::string refusal(Device device) const override {
    return device == device_ || goes_by_host(device)
               ? ""
               : fmt::format("the nccl transport of {} moves memory of {}", own_name(), to_string(device_));
  }
  std::shared_ptr<Operation> post(std::span<const Send> sends, std::span<const Receive> receives, const Purpose& purpose,
                                  StreamView stream) override;
  bool wait_any(std::span<Operation* const> operations, Clock::time_point until) override;
  void progress() noexcept override;
  void throw_if_failed() override;
  /// Never from the watchdog: the host's transport may be MPI, which belongs to the rank's own thread.
  void abort(std::string_view reason, AbortCause cause) noexcept override {
    fail_with(reason, Result::success);
    if (host_) host_->abort(reason, cause);
  }

  /// Starts and retires what can be, on one lane.
  void advance(int lane);
  /// Throws if the group has failed: also for a finished exchange, whose data may be wrong then.
  void throw_if_failed(const Exchange& exchange);

 private:
  struct Lane {
    std::deque<std::shared_ptr<Exchange>> queue;  // only the first may be launched: NCCL takes one call at a time
    std::deque<std::shared_ptr<Exchange>> on_device;
  };

  bool goes_by_host(Device device) const { return host_ && device != device_ && device.kind == DeviceKind::cpu; }
  std::string own_name() const { return fmt::format("rank {} of {}", rank_, size_); }
  std::function<bool()> mark(StreamView stream) const { return record_mark_ ? record_mark_(stream) : std::function<bool()>(); }
  void launch(Exchange& exchange);
  void fail_with(std::string_view reason, Result result) noexcept;
  [[noreturn]] void fail(const Exchange& exchange, const Status& status);
  void watch() noexcept;
  std::optional<Failure> find_failure();
  std::optional<Failure> find_failure(int index, Lane& lane);

  const TransportOptions options_;
  const int rank_, size_;
  const Device device_;
  const std::unique_ptr<Lanes> lanes_;
  const RecordMark record_mark_;
  const std::optional<Communicator> host_;  // for messages in host memory

  std::mutex mutex_;  // guards the rest, but not what an Exchange holds before it is on the device
  std::condition_variable wake_;
  bool stop_ = false;
  std::optional<Failure> failure_;
  std::array<Lane, kLanes> queues_;
  std::thread watchdog_;
};

class NcclOperation final : public Operation {
 public:
  NcclOperation(std::shared_ptr<NcclTransport> transport, std::shared_ptr<Exchange> exchange)
      : transport_(std::move(transport)), exchange_(std::move(exchange)) {}
  bool test() override {
    transport_->throw_if_failed(*exchange_);
    if (!exchange_->done) transport_->advance(exchange_->lane);
    return exchange_->done;
  }
  std::string describe() const override { return exchange_->describe(); }
  Transport& transport() const noexcept override { return *transport_; }

 private:
  std::shared_ptr<NcclTransport> transport_;
  std::shared_ptr<Exchange> exchange_;
};

/// Ends also when the group fails on the device: a peer may have failed there and never come.
class HostOperation final : public Operation {
 public:
  HostOperation(std::shared_ptr<NcclTransport> transport, Pending pending, Exchange exchange)
      : transport_(std::move(transport)), pending_(std::move(pending)), exchange_(std::move(exchange)) {}
  bool test() override {
    transport_->throw_if_failed(exchange_);
    return pending_.done();
  }
  std::string describe() const override { return exchange_.describe(); }
  Transport& transport() const noexcept override { return *transport_; }

 private:
  std::shared_ptr<NcclTransport> transport_;
  Pending pending_;
  Exchange exchange_;
};

std::shared_ptr<Operation> NcclTransport::post(std::span<const Send> sends, std::span<const Receive> receives, const Purpose& purpose,
                                               StreamView stream) {
  const auto empty = [](const auto& message) { return message.bytes == 0; };
  if (std::ranges::any_of(sends, empty) || std::ranges::any_of(receives, empty)) {
    throw InternalError("nccl transport: a message of no bytes");
  }
  // An all-gather of some of the ranks only goes by messages: there is no NCCL communicator of just these.
  const bool all_gather = purpose.all_gather && std::ssize(sends) == size_ - 1;
  auto exchange = std::make_shared<Exchange>(Exchange{.operation = std::string(purpose.operation),
                                                      .step = purpose.step,
                                                      .lane = purpose.lane,
                                                      .sends = {sends.begin(), sends.end()},
                                                      .receives = {receives.begin(), receives.end()},
                                                      .stream = stream,
                                                      .gathered = all_gather ? place_of_rank_0(sends, receives) : nullptr});
  throw_if_failed(*exchange);
  if (goes_by_host(stream.device())) {
    return std::make_shared<HostOperation>(shared_from_this(), host_->exchange(sends, receives, purpose, stream), std::move(*exchange));
  }
  {
    const std::lock_guard lock(mutex_);
    queues_[static_cast<std::size_t>(purpose.lane)].queue.push_back(exchange);
  }
  advance(purpose.lane);
  return std::make_shared<NcclOperation>(shared_from_this(), std::move(exchange));
}

void NcclTransport::launch(Exchange& exchange) {
  exchange.begun = mark(exchange.stream);
  const Status status = exchange.gathered != nullptr
                            ? lanes_->all_gather(exchange.lane, exchange.sends.front(), exchange.gathered, exchange.stream.native())
                            : lanes_->exchange(exchange.lane, exchange.sends, exchange.receives, exchange.stream.native());
  if (failed(status.result)) fail(exchange, status);
  exchange.launched = true;
}

void NcclTransport::advance(int index) {
  Lane& lane = queues_[static_cast<std::size_t>(index)];
  while (true) {
    std::shared_ptr<Exchange> first;
    {
      const std::lock_guard lock(mutex_);
      if (failure_ || lane.queue.empty()) return;
      first = lane.queue.front();
    }
    if (!first->launched) launch(*first);
    const Status status = lanes_->poll(index);
    if (status.result == Result::in_progress) return;
    if (failed(status.result)) fail(*first, status);
    first->passed = mark(first->stream);
    first->done = true;
    const std::lock_guard lock(mutex_);
    lane.queue.pop_front();
    if (first->passed) lane.on_device.push_back(std::move(first));
  }
}

bool NcclTransport::wait_any(std::span<Operation* const> operations, Clock::time_point until) { return poll_any(operations, until); }

void NcclTransport::progress() noexcept {
  try {
    for (int lane = 0; lane < kLanes; ++lane) advance(lane);
    if (host_) host_->progress();
  } catch (const std::exception& error) {
    abort(error.what(), AbortCause::failure);  // does nothing if the error has been recorded where it arose
  }
}

void NcclTransport::throw_if_failed() {
  const std::lock_guard lock(mutex_);
  if (failure_) throw_failure(failure_->result, failure_->text);
}

void NcclTransport::throw_if_failed(const Exchange& exchange) {
  const std::lock_guard lock(mutex_);
  if (failure_) throw_failure(failure_->result, fmt::format("{}: {} cannot finish: {}", own_name(), exchange.describe(), failure_->text));
}

/// The first failure is kept. When this returns, NCCL no longer touches the messages, or the failure says that it may.
void NcclTransport::fail_with(std::string_view reason, Result result) noexcept {
  {
    const std::lock_guard lock(mutex_);
    if (!failure_) {
      failure_.emplace(Failure{{}, result});
      try {
        failure_->text = reason;
      } catch (const std::bad_alloc&) {
        // A failure without a reason is still a failure.
      }
    }
  }
  const std::string left_behind = lanes_->abort();
  if (left_behind.empty()) return;
  const std::lock_guard lock(mutex_);
  try {
    failure_->text.append("; ").append(left_behind);
  } catch (const std::bad_alloc&) {
    // As above.
  }
}

void NcclTransport::fail(const Exchange& exchange, const Status& status) {
  fail_with(fmt::format("{}: {}: {}", own_name(), exchange.describe(), to_string(status)), status.result);
  const std::lock_guard lock(mutex_);
  throw_failure(failure_->result, failure_->text);
}

void NcclTransport::watch() noexcept {
  while (true) {
    std::optional<Failure> found;
    try {
      std::unique_lock lock(mutex_);
      wake_.wait_for(lock, kWatch, [this] { return stop_; });
      if (stop_ || failure_) return;
      found = find_failure();
    } catch (const std::exception& error) {
      return fail_with(error.what(), Result::unhandled_cuda_error);
    }
    if (found) return fail_with(found->text, found->result);
  }
}

/// Called with the mutex held.
std::optional<Failure> NcclTransport::find_failure() {
  for (int index = 0; index < kLanes; ++index) {
    if (std::optional<Failure> found = find_failure(index, queues_[static_cast<std::size_t>(index)])) return found;
  }
  return {};
}

std::optional<Failure> NcclTransport::find_failure(int index, Lane& lane) {
  std::deque<std::shared_ptr<Exchange>>& on_device = lane.on_device;
  while (!on_device.empty() && on_device.front()->passed()) on_device.pop_front();
  Exchange* const oldest = !on_device.empty() ? on_device.front().get() : nullptr;
  const Status status = lanes_->poll(index);
  if (failed(status.result)) {
    const Exchange* const blamed = oldest != nullptr ? oldest : lane.queue.empty() ? nullptr : lane.queue.front().get();
    const std::string what = blamed != nullptr ? blamed->describe() : fmt::format("between the exchanges of lane {}", index);
    return Failure{fmt::format("{}: {}: {}", own_name(), what, to_string(status)), status.result};
  }
  // The deadline counts from when the stream came to the exchange: what comes before it may take long.
  if (oldest == nullptr || (!oldest->begun_at && !oldest->begun())) return {};
  const Clock::time_point now = Clock::now();
  if (!oldest->begun_at) oldest->begun_at = now;
  if (now - *oldest->begun_at < options_.deadline) return {};
  return Failure{fmt::format("{}: not finished after {:.1f} s in its stream: {}; {}", own_name(),
                             std::chrono::duration<double>(now - *oldest->begun_at).count(), oldest->describe(), kDeadlineAdvice),
                 Result::in_progress};
}

}  // namespace

std::shared_ptr<Transport> connect(const std::function<Endpoint()>& find, int rank, const AllGatherBytes& all_gather,
                                   const TransportOptions& options, const RecordMark& record_mark, std::optional<Communicator> host) {
  return std::make_shared<NcclTransport>(rank, connect_lanes(find, rank, all_gather, options), options, record_mark, std::move(host));
}

}  // namespace periplus::comm::nccl
