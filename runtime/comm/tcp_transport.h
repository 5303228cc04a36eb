#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>

#include "runtime/comm/communicator.h"
#include "runtime/comm/transport.h"

namespace periplus::comm {

/// How processes that know only a meeting point become a group.
struct TcpGroup {
  int rank = 0;
  int size = 1;
  std::string host{};      ///< Where rank 0 is, as all ranks can reach it: a name or an address.
  std::uint16_t port = 0;  ///< Where rank 0 listens; or where the store is.
  /// Not empty: at host:port answers torchrun's key-value store (PyTorch 2.1 and newer). Rank 0 listens at a port of its own and
  /// leaves its number in the store under this key, which must be new for each start of the job.
  std::string store_key{};
  /// Or, instead of port and store_key: rank 0 listens at a port of its own. Called once on every rank, with that port on rank 0 and 0
  /// elsewhere; returns rank 0's port on all of them, or 0 if it cannot.
  std::function<std::uint16_t(std::uint16_t own)> share_port{};
  std::chrono::milliseconds patience{120'000};  ///< Longest time until all ranks have come.
  /// Told, after `word_after` and then after twice the time each, for whom this rank still waits. By default stderr has it.
  std::function<void(const std::string&)> on_wait{};
  std::chrono::milliseconds word_after{10'000};
};

/// Communicator over host memory of processes that are joined by TCP, a connection for each pair. Collective. One thread uses it. The
/// network is trusted: whoever can reach the ports can take a rank's place. A message that arrives before its receive is posted is kept in
/// memory. A rank that leaves is noticed at once by those that wait for it. Errors: InvalidArgument for a rank outside of the group,
/// CommError.
Communicator make_tcp_communicator(const TcpGroup& group, const TransportOptions& options = {});

}  // namespace periplus::comm
