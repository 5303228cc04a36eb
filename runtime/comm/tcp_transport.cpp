// Ranks as processes joined by TCP. A message is a header and its bytes; a connection is read whenever this rank polls, also
// ahead of its receives, so that no lane can hold up another. One thread does everything, inside of polls.
#include "runtime/comm/tcp_transport.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <optional>

#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>
#include <fmt/format.h>

#include "runtime/comm/tcp_connect.h"
#include "runtime/error.h"

namespace periplus::comm {
namespace {

namespace asio = boost::asio;
using tcp::Clock;
using tcp::Socket;
using Code = boost::system::error_code;

constexpr std::int32_t kAbortLane = kLanes;  // the bytes of such a message say why its rank gave up
constexpr std::size_t kReasonBytes = 2000;

struct Header {
  std::int32_t lane = 0, step = -1;  ///< On the abort lane an AbortCause stands for the step.
  std::uint64_t bytes = 0;
};

struct Part {
  int peer;
  bool is_send;
  void* data;
  std::size_t bytes;
  bool open = true;
};

class TcpTransport;

/// Its messages are in the queues of the transport until they are done or it goes away.
class TcpOperation final : public Operation {
 public:
  TcpOperation(std::shared_ptr<TcpTransport> transport, std::span<const Send> sends, std::span<const Receive> receives,
               const Purpose& purpose);
  TcpOperation(const TcpOperation&) = delete;
  TcpOperation& operator=(const TcpOperation&) = delete;
  ~TcpOperation() override;
  bool test() override;
  std::string describe() const override;
  Transport& transport() const noexcept override;
  void throw_if_failed() const;

  const Purpose& purpose() const noexcept { return purpose_; }
  std::span<Part> parts() noexcept { return parts_; }
  void finish(Part& part) noexcept {
    part.open = false;
    --open_;
  }

 private:
  std::shared_ptr<TcpTransport> transport_;
  Purpose purpose_;
  std::vector<Part> parts_;
  std::size_t open_;
};

/// A message of an operation that still lives.
struct Slot {
  TcpOperation* operation;
  Part* part;
};

struct Peer {
  int rank;
  Socket socket;
  bool gone = false;

  std::deque<Slot> sends{};  // the first is being written
  Header outgoing{};

  Header incoming{};
  std::optional<Slot> target{};    // of the message that is being read, or
  std::vector<std::byte> aside{};  // its bytes, if it came before its receive
  std::array<std::deque<Slot>, kLanes> receives{};
  std::array<std::deque<std::vector<std::byte>>, kLanes> early{};  // of a lane there are receives or early messages, never both

  bool awaited() const noexcept {
    return target || !sends.empty() || std::ranges::any_of(receives, [](const auto& lane) { return !lane.empty(); });
  }
};

class TcpTransport final : public Transport, public std::enable_shared_from_this<TcpTransport> {
 public:
  TcpTransport(const TcpGroup& group, const TransportOptions& options) : options_(options), rank_(group.rank), size_(group.size) {
    if (size_ == 1) return;
    std::vector<Socket> sockets = tcp::connect_group(io_, group, Clock::now() + group.patience);
    for (int rank = 0; rank < size_; ++rank) {
      Peer& peer = peers_.emplace_back(Peer{.rank = rank, .socket = std::move(sockets[static_cast<std::size_t>(rank)])});
      if (rank != rank_) read_header(peer);
    }
  }

  int rank() const noexcept override { return rank_; }
  int size() const noexcept override { return size_; }
  std::string_view name() const noexcept override { return "tcp"; }
  const TransportOptions& options() const noexcept override { return options_; }
  std::shared_ptr<Operation> post(std::span<const Send> sends, std::span<const Receive> receives, const Purpose& purpose,
                                  StreamView stream) override;
  bool wait_any(std::span<Operation* const> operations, Clock::time_point until) override;
  void progress() noexcept override;
  void throw_if_failed() override {
    if (failure_) throw_failure(failure_->reason);
  }
  void abort(std::string_view reason, AbortCause cause) noexcept override { give_up(reason, {}, cause); }

  void add(Slot slot);
  void withdraw(Slot slot) noexcept;
  struct Failure {
    std::string reason;
    std::optional<AbortCause> of_peer;
  };
  const std::optional<Failure>& failure() const noexcept { return failure_; }
  [[noreturn]] void throw_failure(const std::string& message) const {
    if (failure_->of_peer) throw AbortedByPeer(message, *failure_->of_peer);
    throw CommError(message);
  }
  std::string own_name() const { return fmt::format("rank {} of {}", rank_, size_); }

 private:
  void poll() {
    if (io_.stopped()) io_.restart();
    io_.poll();
  }
  void write_first(Peer& peer);
  void read_header(Peer& peer);
  void read_bytes(Peer& peer);
  void read_reason(Peer& peer);
  void end_message(Peer& peer);
  void require_size(const Peer& peer, const Slot& slot, std::uint64_t bytes);
  void lose(Peer& peer, const Code& code);
  void fail(const std::string& what, std::optional<AbortCause> of_peer = {}) {
    give_up(fmt::format("{}: {}", own_name(), what), of_peer, of_peer.value_or(AbortCause::failure));
  }
  void give_up(std::string_view reason, std::optional<AbortCause> of_peer, AbortCause told_cause) noexcept;

  const TransportOptions options_;
  const int rank_, size_;
  std::optional<Failure> failure_;
  asio::io_context io_{1};
  std::deque<Peer> peers_;
};

TcpOperation::TcpOperation(std::shared_ptr<TcpTransport> transport, std::span<const Send> sends, std::span<const Receive> receives,
                           const Purpose& purpose)
    : transport_(std::move(transport)), purpose_(purpose), open_(sends.size() + receives.size()) {
  for (const Receive& receive : receives) parts_.push_back({receive.peer, false, receive.data, receive.bytes});
  for (const Send& send : sends) parts_.push_back({send.peer, true, const_cast<void*>(send.data), send.bytes});
}

TcpOperation::~TcpOperation() {
  for (Part& part : parts_) {
    if (part.open) transport_->withdraw({this, &part});
  }
}

bool TcpOperation::test() {
  if (open_ > 0) transport_->progress();
  if (open_ == 0) return true;
  throw_if_failed();
  return false;
}

void TcpOperation::throw_if_failed() const {
  if (!transport_->failure()) return;
  transport_->throw_failure(fmt::format("{}: {} cannot finish: {}", transport_->own_name(), describe(), transport_->failure()->reason));
}

std::string TcpOperation::describe() const {
  return describe_open(purpose_, parts_, [](const Part& part) { return part.open; });
}

Transport& TcpOperation::transport() const noexcept { return *transport_; }

std::shared_ptr<Operation> TcpTransport::post(std::span<const Send> sends, std::span<const Receive> receives, const Purpose& purpose,
                                              StreamView) {
  auto operation = std::make_shared<TcpOperation>(shared_from_this(), sends, receives, purpose);
  operation->throw_if_failed();
  for (Part& part : operation->parts()) add({operation.get(), &part});
  return operation;
}

void TcpTransport::add(Slot slot) {
  if (failure_) return;
  Peer& peer = peers_[static_cast<std::size_t>(slot.part->peer)];
  const auto lane = static_cast<std::size_t>(slot.operation->purpose().lane);
  if (slot.part->is_send) {
    peer.sends.push_back(slot);
    if (peer.gone) return lose(peer, asio::error::not_connected);
    if (peer.sends.size() == 1) write_first(peer);
    return;
  }
  if (peer.early[lane].empty()) {
    peer.receives[lane].push_back(slot);
    if (peer.gone) lose(peer, asio::error::not_connected);
    return;
  }
  const std::vector<std::byte> message = std::move(peer.early[lane].front());
  peer.early[lane].pop_front();
  require_size(peer, slot, message.size());
  if (failure_) return;
  std::memcpy(slot.part->data, message.data(), message.size());
  slot.operation->finish(*slot.part);
}

/// After this the message's memory is no longer touched. After a failure nothing is: polling has ended.
void TcpTransport::withdraw(Slot slot) noexcept {
  if (failure_) return;
  Peer& peer = peers_[static_cast<std::size_t>(slot.part->peer)];
  const auto is_it = [&](const Slot& other) { return other.part == slot.part; };
  const bool moving = (peer.target && is_it(*peer.target)) || (!peer.sends.empty() && is_it(peer.sends.front()));
  std::erase_if(peer.sends, is_it);
  for (auto& lane : peer.receives) std::erase_if(lane, is_it);
  if (!moving) return;
  peer.target.reset();
  peer.gone = true;  // the rest of the message cannot follow
  Code ignored;
  peer.socket.close(ignored);
}

void TcpTransport::write_first(Peer& peer) {
  const Slot& slot = peer.sends.front();
  peer.outgoing = {slot.operation->purpose().lane, slot.operation->purpose().step, slot.part->bytes};
  const std::array<asio::const_buffer, 2> buffers = {asio::buffer(&peer.outgoing, sizeof(Header)),
                                                     asio::buffer(slot.part->data, slot.part->bytes)};
  asio::async_write(peer.socket, buffers, [this, &peer](const Code& code, std::size_t) {
    if (failure_ || peer.gone) return;
    if (code) return lose(peer, code);
    const Slot sent = peer.sends.front();
    peer.sends.pop_front();
    sent.operation->finish(*sent.part);
    if (!peer.sends.empty()) write_first(peer);
  });
}

void TcpTransport::read_header(Peer& peer) {
  asio::async_read(peer.socket, asio::buffer(&peer.incoming, sizeof(Header)), [this, &peer](const Code& code, std::size_t) {
    if (failure_ || peer.gone) return;
    if (code) return lose(peer, code);
    peer.incoming.lane == kAbortLane ? read_reason(peer) : read_bytes(peer);
  });
}

void TcpTransport::read_bytes(Peer& peer) {
  if (peer.incoming.lane < 0 || peer.incoming.lane >= kLanes) {
    return fail(fmt::format("rank {} sent a message on lane {}, which does not exist", peer.rank, peer.incoming.lane));
  }
  std::deque<Slot>& receives = peer.receives[static_cast<std::size_t>(peer.incoming.lane)];
  asio::mutable_buffer place;
  if (receives.empty()) {
    peer.aside.resize(peer.incoming.bytes);
    place = asio::buffer(peer.aside);
  } else {
    require_size(peer, receives.front(), peer.incoming.bytes);
    if (failure_) return;
    peer.target = receives.front();
    receives.pop_front();
    place = asio::buffer(peer.target->part->data, peer.target->part->bytes);
  }
  asio::async_read(peer.socket, place, [this, &peer](const Code& code, std::size_t) {
    if (failure_ || peer.gone) return;
    if (code) return lose(peer, code);
    end_message(peer);
    if (!failure_) read_header(peer);
  });
}

void TcpTransport::end_message(Peer& peer) {
  if (peer.target) {
    const Slot slot = *std::exchange(peer.target, std::nullopt);
    return slot.operation->finish(*slot.part);
  }
  const auto lane = static_cast<std::size_t>(peer.incoming.lane);
  peer.early[lane].push_back(std::exchange(peer.aside, {}));
  if (peer.receives[lane].empty()) return;
  const Slot slot = peer.receives[lane].front();  // posted while the message was on its way
  peer.receives[lane].pop_front();
  add(slot);
}

void TcpTransport::read_reason(Peer& peer) {
  peer.aside.resize(std::min<std::uint64_t>(peer.incoming.bytes, kReasonBytes));
  asio::async_read(peer.socket, asio::buffer(peer.aside), [this, &peer](const Code& code, std::size_t) {
    if (failure_ || peer.gone) return;
    if (code) return lose(peer, code);
    const bool is_invalid = peer.incoming.step == static_cast<std::int32_t>(AbortCause::invalid_argument);
    fail(fmt::format("rank {} gave up: {}", peer.rank,
                     std::string_view(reinterpret_cast<const char*>(peer.aside.data()), peer.aside.size())),
         is_invalid ? AbortCause::invalid_argument : AbortCause::failure);
  });
}

void TcpTransport::require_size(const Peer& peer, const Slot& slot, std::uint64_t bytes) {
  if (bytes == slot.part->bytes) return;
  fail(fmt::format("{}: message sizes disagree: rank {} sent {} bytes where {} were expected; every rank must execute the same program",
                   slot.operation->describe(), peer.rank, bytes, slot.part->bytes));
}

/// A rank may leave when it has done all that others wait for.
void TcpTransport::lose(Peer& peer, const Code& code) {
  peer.gone = true;
  if (peer.awaited()) fail(fmt::format("rank {} has left, or its connection broke: {}", peer.rank, code.message()));
}

bool TcpTransport::wait_any(std::span<Operation* const> operations, Clock::time_point until) {
  constexpr auto kSpin = std::chrono::microseconds(50);
  const Clock::time_point spin_end = Clock::now() + kSpin;
  while (std::ranges::none_of(operations, [](Operation* operation) { return operation->test(); })) {
    const Clock::time_point now = Clock::now();
    if (now >= until) return false;
    if (now < spin_end) continue;
    try {
      if (io_.stopped()) io_.restart();
      io_.run_one_until(until);
    } catch (const std::exception& error) {
      abort(error.what(), AbortCause::failure);
    }
  }
  return true;
}

void TcpTransport::progress() noexcept {
  if (failure_) return;
  try {
    poll();
  } catch (const std::exception& error) {
    abort(error.what(), AbortCause::failure);
  }
}

void TcpTransport::give_up(std::string_view reason, std::optional<AbortCause> of_peer, AbortCause told_cause) noexcept {
  if (failure_) return;
  failure_.emplace().of_peer = of_peer;
  try {
    failure_->reason = reason;
  } catch (const std::bad_alloc&) {
    // Failed it has.
  }
  const std::string_view told = reason.substr(0, kReasonBytes);
  const Header header{kAbortLane, static_cast<std::int32_t>(told_cause), told.size()};
  for (Peer& peer : peers_) {
    if (peer.rank == rank_ || peer.gone) continue;
    Code ignored;
    // Without waiting, and not inside another message: who does not hear why still sees the connection end.
    peer.socket.non_blocking(true, ignored);
    const std::array<asio::const_buffer, 2> buffers = {asio::buffer(&header, sizeof(header)), asio::buffer(told)};
    if (peer.sends.empty()) peer.socket.write_some(buffers, ignored);
    peer.socket.shutdown(Socket::shutdown_send, ignored);
  }
}

}  // namespace

Communicator make_tcp_communicator(const TcpGroup& group, const TransportOptions& options) {
  if (group.size < 1 || group.rank < 0 || group.rank >= group.size) {
    throw InvalidArgument(fmt::format("tcp transport: there is no rank {} in a group of {}", group.rank, group.size));
  }
  if (options.links) throw InvalidArgument("tcp transport: its links cannot be paced; use the thread transport for that");
  return Communicator(std::make_shared<TcpTransport>(group, options));
}

}  // namespace periplus::comm
