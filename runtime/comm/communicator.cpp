// What every transport shares: argument checks, self messages, traffic counts, waiting with a deadline.
#include "runtime/comm/communicator.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <iterator>
#include <thread>
#include <utility>

#include <fmt/format.h>

#include "runtime/comm/transport.h"
#include "runtime/cuda/device.h"
#include "runtime/error.h"

namespace periplus::comm {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Finishes or gives up an operation that nobody will wait for. Errors reach the caller through the aborted group.
void settle(std::shared_ptr<Operation> operation) noexcept {
  if (!operation) return;
  const std::shared_ptr<Operation> alive = operation;  // it may hold the last reference to its transport
  Transport& transport = alive->transport();
  try {
    if (operation->test()) return;
    if (std::uncaught_exceptions() == 0) {
      Pending(std::move(operation)).wait();
      return;
    }
    transport.abort(
        fmt::format("rank {} of {}: an exception left {} unfinished", transport.rank(), transport.size(), operation->describe()),
        AbortCause::failure);
  } catch (const std::exception& error) {
    transport.abort(error.what(), AbortCause::failure);
  } catch (...) {
    transport.abort("unknown failure in an operation that was not waited for", AbortCause::failure);
  }
}

template <class Message>
void check_message(const Message& message, int size, const Purpose& purpose, std::string_view verb) {
  if (message.peer < 0 || message.peer >= size) {
    throw InvalidArgument(
        fmt::format("{}: {} names rank {}; ranks of this group are 0..{}", purpose.operation, verb, message.peer, size - 1));
  }
  if (message.data == nullptr && message.bytes > 0) {
    throw InvalidArgument(
        fmt::format("{}: {} of {} bytes with rank {} has no memory", purpose.operation, verb, message.bytes, message.peer));
  }
}

void check_arguments(std::span<const Send> sends, std::span<const Receive> receives, int size, const Purpose& purpose) {
  if (purpose.lane < 0 || purpose.lane >= kLanes) {
    throw InvalidArgument(fmt::format("{}: lane {} does not exist; lanes are 0..{}", purpose.operation, purpose.lane, kLanes - 1));
  }
  for (const Send& send : sends) check_message(send, size, purpose, "a send");
  for (const Receive& receive : receives) check_message(receive, size, purpose, "a receive");
}

/// The k-th send to the own rank meets the k-th receive from it.
void copy_self_messages(std::span<const Send> sends, std::span<const Receive> receives, int self, const Purpose& purpose,
                        StreamView stream) {
  auto receive = receives.begin();
  const auto next_receive = [&] { return std::find_if(receive, receives.end(), [&](const Receive& r) { return r.peer == self; }); };
  for (const Send& send : sends) {
    if (send.peer != self) continue;
    receive = next_receive();
    if (receive == receives.end()) {
      throw CommError(
          fmt::format("{}: rank {} sends {} bytes to itself without a receive in the same call", purpose.operation, self, send.bytes));
    }
    if (receive->bytes != send.bytes) {
      throw CommError(
          fmt::format("{}: rank {} sends {} bytes to itself but receives {}", purpose.operation, self, send.bytes, receive->bytes));
    }
    if (stream.device().kind == DeviceKind::cuda) {
      cuda::copy_bytes(receive->data, send.data, send.bytes, stream);
    } else if (send.bytes > 0) {
      std::memcpy(receive->data, send.data, send.bytes);
    }
    ++receive;
  }
  receive = next_receive();
  if (receive != receives.end()) {
    throw CommError(
        fmt::format("{}: rank {} receives {} bytes from itself without a send in the same call", purpose.operation, self, receive->bytes));
  }
}

template <class Message>
std::vector<Message> to_transport(std::span<const Message> messages, int self) {
  std::vector<Message> result;
  result.reserve(messages.size());
  std::copy_if(messages.begin(), messages.end(), std::back_inserter(result),
               [&](const Message& message) { return message.peer != self && message.bytes > 0; });
  return result;
}

template <class Message>
std::size_t total_bytes(const std::vector<Message>& messages) {
  std::size_t total = 0;
  for (const Message& message : messages) total += message.bytes;
  return total;
}

}  // namespace

bool poll_any(std::span<Operation* const> operations, std::chrono::steady_clock::time_point until) {
  constexpr auto kSpin = std::chrono::microseconds(50);
  const auto spin_end = std::chrono::steady_clock::now() + kSpin;
  while (std::ranges::none_of(operations, [](Operation* operation) { return operation->test(); })) {
    const auto now = std::chrono::steady_clock::now();
    if (now >= until) return false;
    if (now >= spin_end) std::this_thread::yield();
  }
  return true;
}

std::string describe_exchange(const Purpose& purpose, std::span<const Send> sends, std::span<const Receive> receives) {
  constexpr std::size_t kListed = 8;  // an all-to-all over many ranks must still fit a line
  std::string text = purpose.operation == "exchange" ? "exchange" : fmt::format("exchange '{}'", purpose.operation);
  text += purpose.step >= 0 ? fmt::format(" (plan step {}, lane {})", purpose.step, purpose.lane) : fmt::format(" (lane {})", purpose.lane);
  std::size_t listed = 0;
  const auto list = [&](std::string_view verb, std::size_t bytes, std::string_view preposition, int peer) {
    if (listed < kListed) text += fmt::format("{} {} {} bytes {} rank {}", listed == 0 ? ":" : ",", verb, bytes, preposition, peer);
    ++listed;
  };
  for (const Receive& receive : receives) list("receive", receive.bytes, "from", receive.peer);
  for (const Send& send : sends) list("send", send.bytes, "to", send.peer);
  if (listed > kListed) text += fmt::format(" and {} more messages", listed - kListed);
  return text;
}

std::string Transport::refusal(Device device) const {
  if (device.kind == DeviceKind::cpu) return "";
  return fmt::format("the {} transport moves host memory only; copy to the host first", name());
}

Pending& Pending::operator=(Pending&& other) {
  if (this != &other) {
    settle(std::move(operation_));
    operation_ = std::move(other.operation_);
  }
  return *this;
}

Pending::~Pending() { settle(std::move(operation_)); }

bool Pending::done() {
  if (!operation_) return true;
  // Held here while it may throw: a failed operation must not be waited for again by the destructor.
  std::shared_ptr<Operation> operation = std::move(operation_);
  if (operation->test()) return true;
  operation_ = std::move(operation);
  return false;
}

void Pending::wait() {
  Pending* const self = this;
  wait_any({&self, 1});
}

bool Pending::wait_any_until(std::span<Pending* const> pending, Clock::time_point until) {
  std::vector<Operation*> operations;
  std::shared_ptr<Operation> first;  // kept alive: a Pending may hold the last reference to it, and that the last one to the transport
  for (Pending* p : pending) {
    if (!p->operation_) continue;
    if (p->done()) return true;
    if (!first) first = p->operation_;
    operations.push_back(p->operation_.get());
  }
  if (operations.empty()) return true;
  Transport& transport = first->transport();
  const Clock::time_point start = Clock::now();
  bool finished = transport.wait_any(operations, until);
  for (Pending* p : pending) finished |= p->operation_ && p->done();
  transport.traffic().wait_seconds += seconds_since(start);
  return finished;
}

void Pending::wait_any(std::span<Pending* const> pending) {
  const auto open = std::ranges::find_if(pending, [](const Pending* p) { return p->operation_ != nullptr; });
  if (open == pending.end()) return;
  const std::shared_ptr<Operation> first = (*open)->operation_;  // keeps the transport alive
  Transport& transport = first->transport();
  const Clock::time_point start = Clock::now();
  if (wait_any_until(pending, start + transport.options().deadline)) return;
  std::string waiting;
  for (Pending* p : pending) {
    if (p->operation_) waiting += (waiting.empty() ? "" : " and ") + std::exchange(p->operation_, nullptr)->describe();
  }
  const std::string message = fmt::format("rank {} of {}: not finished after {:.1f} s: {}; {}", transport.rank(), transport.size(),
                                          seconds_since(start), waiting, kDeadlineAdvice);
  transport.abort(message, AbortCause::failure);
  throw CommError(message);
}

int Communicator::rank() const noexcept { return transport_ ? transport_->rank() : 0; }
int Communicator::size() const noexcept { return transport_ ? transport_->size() : 1; }
std::string_view Communicator::transport_name() const noexcept { return transport_ ? transport_->name() : "none"; }

std::string Communicator::refusal(Device device) const { return transport_ ? transport_->refusal(device) : ""; }

Pending Communicator::exchange(std::span<const Send> sends, std::span<const Receive> receives, const Purpose& purpose,
                               StreamView stream) const {
  check_arguments(sends, receives, size(), purpose);
  if (const std::string why = refusal(stream.device()); !why.empty()) {
    throw InvalidArgument(fmt::format("{}: the stream is on {}, but {}", purpose.operation, to_string(stream.device()), why));
  }
  copy_self_messages(sends, receives, rank(), purpose, stream);
  const std::vector<Send> outgoing = to_transport(sends, rank());
  const std::vector<Receive> incoming = to_transport(receives, rank());
  if (outgoing.empty() && incoming.empty()) return Pending();
  Pending pending(transport_->post(outgoing, incoming, purpose, stream));
  Traffic& traffic = transport_->traffic();
  traffic.bytes_sent += total_bytes(outgoing);
  traffic.bytes_received += total_bytes(incoming);
  traffic.messages_sent += outgoing.size();
  return pending;
}

void Communicator::progress() const {
  if (transport_) transport_->progress();
}

void Communicator::throw_if_failed() const {
  if (transport_) transport_->throw_if_failed();
}

void Communicator::abort(std::string_view reason, AbortCause cause) const noexcept {
  if (transport_) transport_->abort(reason, cause);
}

int Communicator::outermost(int rank) const noexcept { return transport_ ? transport_->outermost(rank) : rank; }

Traffic Communicator::traffic() const { return transport_ ? transport_->traffic() : Traffic{}; }

}  // namespace periplus::comm
