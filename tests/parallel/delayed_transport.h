#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <deque>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "runtime/comm/transport.h"

namespace periplus::comm {

class DelayedTransport;

/// An exchange that is handed on when its time has come, in order on its lane.
class DelayedOperation final : public Operation {
 public:
  DelayedOperation(DelayedTransport& transport, std::span<const Send> sends, std::span<const Receive> receives, const Purpose& purpose,
                   std::chrono::steady_clock::time_point due)
      : transport_(transport),
        sends_(sends.begin(), sends.end()),
        receives_(receives.begin(), receives.end()),
        purpose_(purpose),
        due_(due) {}
  DelayedOperation(const DelayedOperation&) = delete;
  DelayedOperation& operator=(const DelayedOperation&) = delete;
  ~DelayedOperation() override;

  bool test() override;
  std::string describe() const override { return describe_exchange(purpose_, sends_, receives_); }
  Transport& transport() const noexcept override;

  bool is_due() const { return std::chrono::steady_clock::now() >= due_; }
  int lane() const { return purpose_.lane; }
  void start(const Communicator& inner) {
    pending_ = inner.exchange(sends_, receives_, purpose_, Stream());
    started_ = true;
  }

 private:
  DelayedTransport& transport_;
  std::vector<Send> sends_;
  std::vector<Receive> receives_;
  Purpose purpose_;
  std::chrono::steady_clock::time_point due_;
  bool started_ = false;
  Pending pending_;
};

/// Another transport whose exchanges start up to a millisecond late, at random: lanes and ranks overtake each other.
class DelayedTransport final : public Transport {
 public:
  DelayedTransport(Communicator inner, std::uint64_t seed) : inner_(std::move(inner)), random_(seed) {}

  int rank() const noexcept override { return inner_.rank(); }
  int size() const noexcept override { return inner_.size(); }
  std::string_view name() const noexcept override { return "delayed"; }
  const TransportOptions& options() const noexcept override { return options_; }
  std::shared_ptr<Operation> post(std::span<const Send> sends, std::span<const Receive> receives, const Purpose& purpose,
                                  StreamView) override {
    const std::chrono::microseconds delay(random_() % 1000);
    auto operation = std::make_shared<DelayedOperation>(*this, sends, receives, purpose, std::chrono::steady_clock::now() + delay);
    waiting_[static_cast<std::size_t>(purpose.lane)].push_back(operation.get());
    return operation;
  }
  bool wait_any(std::span<Operation* const> operations, std::chrono::steady_clock::time_point until) override {
    while (std::ranges::none_of(operations, [](Operation* operation) { return operation->test(); })) {
      if (std::chrono::steady_clock::now() >= until) return false;
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
    return true;
  }
  void progress() noexcept override { inner_.progress(); }
  void abort(std::string_view reason, comm::AbortCause cause) noexcept override { inner_.abort(reason, cause); }

  void start_due(int lane) {
    auto& waiting = waiting_[static_cast<std::size_t>(lane)];
    for (; !waiting.empty() && waiting.front()->is_due(); waiting.pop_front()) waiting.front()->start(inner_);
  }
  void forget(DelayedOperation* operation) { std::erase(waiting_[static_cast<std::size_t>(operation->lane())], operation); }

 private:
  Communicator inner_;
  TransportOptions options_;
  std::mt19937_64 random_;
  std::array<std::deque<DelayedOperation*>, kLanes> waiting_;
};

inline DelayedOperation::~DelayedOperation() { transport_.forget(this); }
inline Transport& DelayedOperation::transport() const noexcept { return transport_; }
inline bool DelayedOperation::test() {
  transport_.start_due(purpose_.lane);
  return started_ && pending_.done();
}

}  // namespace periplus::comm
