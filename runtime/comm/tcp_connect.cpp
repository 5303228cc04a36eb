// How ranks find each other: all know where rank 0 listens. Each opens a port, tells it to rank 0, and hears those of all; then
// a rank connects to those below it and is called by those above.
#include "runtime/comm/tcp_connect.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <thread>

#include <boost/asio/connect.hpp>
#include <boost/asio/ip/v6_only.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "runtime/error.h"

namespace periplus::comm::tcp {
namespace {

namespace asio = boost::asio;
using Acceptor = asio::ip::tcp::acceptor;
using Code = boost::system::error_code;

constexpr std::uint64_t kMagic = 0x7065726970320001;  // changes with what ranks say to each other
constexpr auto kHelloLimit = std::chrono::seconds(2);
constexpr auto kRetry = std::chrono::milliseconds(50);

struct Hello {
  std::uint64_t magic = kMagic;
  std::int32_t rank = 0, size = 0;
  std::uint64_t port = 0;
};

/// Where a rank can be called; an address of no characters is that of rank 0's host.
struct Place {
  std::array<char, 56> address{};
  std::uint64_t port = 0;
};

/// Runs what `start` begins until its handler is called. At `until` closes the socket, which calls the handler too. Before that calls
/// `late`, and again at the time that it returns.
template <class SocketOrAcceptor, class Start, class Late>
Code complete(asio::io_context& io, SocketOrAcceptor& socket, Clock::time_point until, Start start, Late late) {
  std::optional<Code> result;
  start([&result](const Code& code, const auto&...) { result = code; });
  io.restart();
  while (!result && Clock::now() < until) io.run_one_until(std::min(until, late()));
  if (result) return *result;
  Code ignored;
  socket.close(ignored);
  io.restart();
  while (!result) io.run_one();
  return asio::error::timed_out;
}

template <class SocketOrAcceptor, class Start>
Code complete(asio::io_context& io, SocketOrAcceptor& socket, Clock::time_point until, Start start) {
  return complete(io, socket, until, start, [until] { return until; });
}

/// On all interfaces, by IPv6 and IPv4 where there is both.
Acceptor listen(asio::io_context& io, std::uint16_t port, const Caller& caller) {
  Code code;
  for (const auto& protocol : {asio::ip::tcp::v6(), asio::ip::tcp::v4()}) {
    Acceptor acceptor(io);
    acceptor.open(protocol, code);
    if (!code && protocol == asio::ip::tcp::v6()) acceptor.set_option(asio::ip::v6_only(false), code);
    if (!code) acceptor.set_option(Acceptor::reuse_address(true), code);
    if (!code) acceptor.bind({protocol, port}, code);
    if (!code) acceptor.listen(asio::socket_base::max_listen_connections, code);
    if (!code) return acceptor;
    if (code == asio::error::address_in_use) break;
  }
  caller.fail(fmt::format("listening at port {}", port), code.message());
}

Place place_of(const Socket& socket, std::uint64_t port) {
  asio::ip::address address = socket.remote_endpoint().address();
  if (address.is_v6() && address.to_v6().is_v4_mapped()) address = asio::ip::make_address_v4(asio::ip::v4_mapped, address.to_v6());
  Place place{{}, port};
  // A rank that reached rank 0 inside of its host is there too, and others reach it as they reach rank 0.
  if (!address.is_loopback()) address.to_string().copy(place.address.data(), place.address.size() - 1);
  return place;
}

class Meeting {
 public:
  Meeting(asio::io_context& io, const TcpGroup& group, Clock::time_point until) : group_(group), caller_(io, group, until), acceptor_(io) {
    for (int rank = 0; rank < group.size; ++rank) sockets_.emplace_back(io);
    const bool at_meeting_point = group.rank == 0 && group.store_key.empty() && !group.share_port;
    acceptor_ = listen(io, at_meeting_point ? group.port : 0, caller_);
    own_port_ = acceptor_.local_endpoint().port();
  }

  std::vector<Socket> connect() {
    std::vector<Place> places(sockets_.size());
    const std::size_t bytes = places.size() * sizeof(Place);
    const std::uint16_t shared_port = group_.share_port ? share_port() : 0;
    if (group_.rank == 0) {
      if (!group_.store_key.empty()) set_in_store(caller_, group_.host, group_.port, group_.store_key, std::to_string(own_port_));
      accept_all(&places);
      for (int rank = 1; rank < group_.size; ++rank)
        caller_.write(socket(rank), places.data(), bytes, fmt::format("answering rank {}", rank));
    } else {
      call(0, group_.host, group_.share_port ? shared_port : port_of_rank_0());
      caller_.read(socket(0), places.data(), bytes, "waiting for rank 0 to hear of all ranks");
      for (int rank = 1; rank < group_.rank; ++rank) {
        const Place& place = places[static_cast<std::size_t>(rank)];
        call(rank, place.address[0] == '\0' ? group_.host : place.address.data(), static_cast<std::uint16_t>(place.port));
      }
      accept_all(nullptr);
    }
    for (int rank = 0; rank < group_.size; ++rank) {
      if (rank != group_.rank) socket(rank).set_option(asio::ip::tcp::no_delay(true));
    }
    return std::move(sockets_);
  }

 private:
  Socket& socket(int rank) { return sockets_[static_cast<std::size_t>(rank)]; }

  std::uint16_t share_port() {
    const std::uint16_t port = group_.share_port(group_.rank == 0 ? own_port_ : 0);
    if (port == 0) caller_.fail("telling the port of rank 0 to all ranks", "the program's own way to share it gave none");
    return port;
  }

  std::uint16_t port_of_rank_0() {
    if (group_.store_key.empty()) return group_.port;
    const std::string text = wait_in_store(caller_, group_.host, group_.port, group_.store_key);
    std::uint16_t port = 0;
    if (std::from_chars(text.data(), text.data() + text.size(), port).ec != std::errc{}) {
      caller_.fail("reading the port of rank 0 in torchrun's store", fmt::format("'{}' is no port", text));
    }
    return port;
  }

  void call(int rank, const std::string& host, std::uint16_t port) {
    socket(rank) = caller_.connect(host, port);
    const Hello hello{kMagic, group_.rank, group_.size, own_port_};
    caller_.write(socket(rank), &hello, sizeof(hello), fmt::format("greeting rank {}", rank));
  }

  /// Until every rank above this one has called; their places go to `places`.
  void accept_all(std::vector<Place>* places) {
    for (int open = group_.size - 1 - group_.rank; open > 0;) {
      Hello hello{};
      std::optional<Socket> caller = caller_.accept(acceptor_, &hello, sizeof(hello), waiting());
      if (!caller || hello.magic != kMagic) continue;  // a stranger
      if (hello.size != group_.size || hello.rank <= group_.rank || hello.rank >= group_.size || socket(hello.rank).is_open()) {
        caller_.fail("being called by other ranks",
                     fmt::format("a process says that it is rank {} of {}, which {}; every process needs RANK of its own and the same "
                                 "WORLD_SIZE, and every job a MASTER_PORT of its own",
                                 hello.rank, hello.size, hello.size == group_.size ? "is taken" : "belongs to another group"));
      }
      if (places != nullptr) (*places)[static_cast<std::size_t>(hello.rank)] = place_of(*caller, hello.port);
      socket(hello.rank) = std::move(*caller);
      --open;
    }
  }

  std::string waiting() {
    constexpr std::size_t kListed = 8;
    std::vector<int> missing;
    for (int rank = group_.rank + 1; rank < group_.size; ++rank) {
      if (!socket(rank).is_open()) missing.push_back(rank);
    }
    const bool more = missing.size() > kListed;
    missing.resize(std::min(missing.size(), kListed));
    return fmt::format("waiting at port {} for rank {}{}", own_port_, fmt::join(missing, ", "), more ? " and more" : "");
  }

  const TcpGroup& group_;
  Caller caller_;
  Acceptor acceptor_;
  std::uint16_t own_port_ = 0;
  std::vector<Socket> sockets_;
};

}  // namespace

Caller::Caller(asio::io_context& io, const TcpGroup& group, Clock::time_point until)
    : io_(io),
      group_(group),
      who_(fmt::format("rank {} of {}", group.rank, group.size)),
      until_(until),
      word_after_(group.word_after),
      word_at_(Clock::now() + word_after_) {}

Clock::time_point Caller::say_if_late(const std::string& what) {
  if (const Clock::time_point now = Clock::now(); now >= word_at_) {
    const std::string line = fmt::format("tcp transport: {}: {}", who_, what);
    group_.on_wait ? group_.on_wait(line) : fmt::print(stderr, "periplus: {}\n", line);
    word_after_ *= 2;
    word_at_ = now + word_after_;
  }
  return word_at_;
}

void Caller::fail(const std::string& what, const std::string& why) const {
  throw CommError(fmt::format("tcp transport: {}: {}: {}", who_, what, why));
}

Socket Caller::connect(const std::string& host, std::uint16_t port) {
  const std::string what = fmt::format("connecting to {} at port {}", host, port);
  // Rank 0 may not have started yet, nor its host, nor may its name be known (containers that start together).
  const std::array<Code, 3> may_pass = {asio::error::connection_refused, asio::error::host_unreachable,
                                        asio::error::host_not_found_try_again};
  while (true) {
    say_if_late(what);
    Code code;
    asio::ip::tcp::resolver resolver(io_);
    const auto places = resolver.resolve(host, std::to_string(port), code);
    if (!code) {
      Socket socket(io_);
      code = complete(io_, socket, until_, [&](auto handler) { asio::async_connect(socket, places, handler); });
      if (!code) return socket;
    }
    if (std::ranges::find(may_pass, code) == may_pass.end() || Clock::now() + kRetry >= until_) {
      fail(what, code == asio::error::connection_refused ? fmt::format("nobody listens there; {}", kDeadlineAdvice) : code.message());
    }
    std::this_thread::sleep_for(kRetry);
  }
}

void Caller::read(Socket& socket, void* data, std::size_t bytes, const std::string& what) {
  const Code code = complete(io_, socket, until_, [&](auto handler) { asio::async_read(socket, asio::buffer(data, bytes), handler); });
  if (code) fail(what, code == asio::error::timed_out ? fmt::format("not finished in time; {}", kDeadlineAdvice) : code.message());
}

void Caller::write(Socket& socket, const void* data, std::size_t bytes, const std::string& what) {
  const Code code = complete(io_, socket, until_, [&](auto handler) { asio::async_write(socket, asio::buffer(data, bytes), handler); });
  if (code) fail(what, code.message());
}

std::optional<Socket> Caller::accept(Acceptor& acceptor, void* hello, std::size_t bytes, const std::string& what) {
  Socket socket(io_);
  const Code code = complete(
      io_, acceptor, until_, [&](auto handler) { acceptor.async_accept(socket, handler); }, [&] { return say_if_late(what); });
  if (code) fail(what, code == asio::error::timed_out ? fmt::format("not finished in time; {}", kDeadlineAdvice) : code.message());
  const Clock::time_point limit = std::min(until_, Clock::now() + kHelloLimit);
  if (complete(io_, socket, limit, [&](auto handler) { asio::async_read(socket, asio::buffer(hello, bytes), handler); })) return {};
  return socket;
}

std::vector<Socket> connect_group(asio::io_context& io, const TcpGroup& group, Clock::time_point until) {
  return Meeting(io, group, until).connect();
}

}  // namespace periplus::comm::tcp
