#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>

#include "runtime/comm/tcp_transport.h"

/// Included by the files of the TCP transport only.
namespace periplus::comm::tcp {

using Socket = boost::asio::ip::tcp::socket;
using Clock = std::chrono::steady_clock;

/// Blocking calls with an end: each throws CommError that names `who` and what it tried, at the latest at `until`.
class Caller {
 public:
  Caller(boost::asio::io_context& io, const TcpGroup& group, Clock::time_point until);

  /// Tries again while nobody listens there: rank 0 may start last.
  Socket connect(const std::string& host, std::uint16_t port);
  void read(Socket& socket, void* data, std::size_t bytes, const std::string& what);
  void write(Socket& socket, const void* data, std::size_t bytes, const std::string& what);
  /// A connection that says in time that it is one of ours, else nothing. `hello` is what it says.
  std::optional<Socket> accept(boost::asio::ip::tcp::acceptor& acceptor, void* hello, std::size_t bytes, const std::string& what);

  [[noreturn]] void fail(const std::string& what, const std::string& why) const;

 private:
  /// Tells the program if it is time; returns when it will be next.
  Clock::time_point say_if_late(const std::string& what);

  boost::asio::io_context& io_;
  const TcpGroup& group_;
  const std::string who_;
  const Clock::time_point until_;
  std::chrono::milliseconds word_after_;
  Clock::time_point word_at_;
};

/// Connections to all other ranks; that of the own rank is closed.
std::vector<Socket> connect_group(boost::asio::io_context& io, const TcpGroup& group, Clock::time_point until);

/// A client of torchrun's store: writes `value` under `key`, or waits until somebody has and returns it.
void set_in_store(Caller& caller, const std::string& host, std::uint16_t port, const std::string& key, const std::string& value);
std::string wait_in_store(Caller& caller, const std::string& host, std::uint16_t port, const std::string& key);

}  // namespace periplus::comm::tcp
