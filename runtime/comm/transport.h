#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/comm/communicator.h"
#include "runtime/comm/pacing.h"

namespace periplus::comm {

struct TransportOptions {
  /// Longest time one wait may take before it fails with CommError.
  std::chrono::milliseconds deadline{120'000};
  /// Thread transport only: messages arrive as late as these links would bring them, and waiting for them takes no CPU. On a device
  /// a message leaves when the streams of both ends have come to it, which the host polls, and what follows an exchange is enqueued only
  /// once it has arrived; so the deadline of a wait includes what the streams do before.
  std::optional<Links> links{};
};

/// One posted exchange. Implementations keep what `describe` needs: peers and bytes that are still open.
class Operation {
 public:
  virtual ~Operation() = default;
  /// Progresses; true once every message has moved; throws CommError if the group failed.
  virtual bool test() = 0;
  /// "exchange 'ring kv' (plan step 12, lane 0): receive 4096 bytes from rank 3, send 4096 bytes to rank 1".
  virtual std::string describe() const = 0;
  virtual Transport& transport() const noexcept = 0;
};

/// Transport::wait_any for transports that only learn of progress by asking: it asks at once for 50 us, and then offers the core
/// to others between polls.
bool poll_any(std::span<Operation* const> operations, std::chrono::steady_clock::time_point until);

/// What Operation::describe returns, given the messages that are still open.
std::string describe_exchange(const Purpose& purpose, std::span<const Send> sends, std::span<const Receive> receives);
/// The same of those `parts`, with peer, is_send and bytes, that is_open(part).
template <class Parts, class IsOpen>
std::string describe_open(const Purpose& purpose, const Parts& parts, const IsOpen& is_open) {
  std::vector<Send> sends;
  std::vector<Receive> receives;
  for (const auto& part : parts) {
    if (!is_open(part)) continue;
    if (part.is_send) {
      sends.push_back({part.peer, nullptr, part.bytes});
    } else {
      receives.push_back({part.peer, nullptr, part.bytes});
    }
  }
  return describe_exchange(purpose, sends, receives);
}

/// Ends every message about a deadline.
inline constexpr std::string_view kDeadlineAdvice =
    "check that every rank is alive and executes the same program, or raise the deadline (--deadline, run.deadline_seconds, "
    "TransportOptions)";

/// What a transport supplies: one verb. Everything else is built on it in communicator.cpp.
class Transport {
 public:
  virtual ~Transport() = default;
  virtual int rank() const noexcept = 0;
  virtual int size() const noexcept = 0;
  virtual std::string_view name() const noexcept = 0;
  virtual const TransportOptions& options() const noexcept = 0;
  /// Why it does not move messages in memory of `device`, as a clause; empty if it does.
  virtual std::string refusal(Device device) const;
  /// Arguments are already checked; self and zero-byte messages have been handled by the Communicator. On a stream of a device
  /// the operation is done once it is enqueued there.
  virtual std::shared_ptr<Operation> post(std::span<const Send> sends, std::span<const Receive> receives, const Purpose& purpose,
                                          StreamView stream) = 0;
  /// Blocks until one of `operations`, all of them this transport's, is done, or until `until`; false on time-out; throws
  /// CommError if the group failed.
  virtual bool wait_any(std::span<Operation* const> operations, std::chrono::steady_clock::time_point until) = 0;
  /// Never throws: it runs inside kernels. A failure it meets is thrown by the next test, wait or post.
  virtual void progress() noexcept = 0;
  /// Throws if an operation failed after it was done, as those in a device's stream can.
  virtual void throw_if_failed() {}
  virtual void abort(std::string_view reason, AbortCause cause) noexcept = 0;
  virtual Traffic& traffic() noexcept { return traffic_; }
  /// Rank of the outermost group that `rank` is of (Communicator::group).
  virtual int outermost(int rank) const noexcept { return rank; }

 private:
  Traffic traffic_;
};

}  // namespace periplus::comm
