#include "runtime/comm/nccl_connect.h"

#include <algorithm>
#include <cstring>
#include <exception>

#include <fmt/format.h>

#include "runtime/cuda/device.h"
#include "runtime/error.h"
#include "runtime/host.h"

namespace periplus::comm {
namespace nccl {
namespace {

/// Every rank does its part and hears of all parts; if one rank cannot, all throw. Without this the others would wait for
/// it until their deadline, and not learn why.
std::vector<std::string> agree(const AllGatherBytes& all_gather, int rank, const std::function<std::string()>& own_part) {
  constexpr char kGood = '+', kBad = '-';
  std::string mine;
  std::exception_ptr failure;
  try {
    mine = kGood + own_part();
  } catch (const std::exception& error) {
    failure = std::current_exception();
    mine = std::string(1, kBad) + error.what();
  }
  std::vector<std::string> parts;
  try {
    parts = all_gather(mine);
  } catch (...) {
    if (failure) std::rethrow_exception(failure);  // the cause says more than its echo
    throw;
  }
  if (failure) std::rethrow_exception(failure);
  const int size = static_cast<int>(parts.size());
  if (rank < 0 || rank >= size || parts[static_cast<std::size_t>(rank)] != mine) {
    throw InvalidArgument(
        fmt::format("nccl transport: the all-gather of bytes returned {} parts, and that of rank {} is not its own", size, rank));
  }
  for (int other = 0; other < size; ++other) {
    std::string& part = parts[static_cast<std::size_t>(other)];
    if (part.empty() || part.front() != kGood) {
      throw CommError(fmt::format("nccl transport: rank {} of {} could not connect: {}", other, size, part.empty() ? "" : part.substr(1)));
    }
    part.erase(0, 1);
  }
  return parts;
}

// An endpoint as lines: version, host, card.
std::string to_bytes(const Endpoint& endpoint) { return fmt::format("{}\n{}\n{}", endpoint.api->version, endpoint.host, endpoint.card); }

struct Peer {
  std::string version, host, card;
};
Peer peer_from(const std::string& bytes) {
  const std::size_t first = bytes.find('\n'), second = bytes.find('\n', first + 1);
  return {bytes.substr(0, first), bytes.substr(first + 1, second - first - 1), bytes.substr(second + 1)};
}

void check_peers(const std::vector<std::string>& parts) {
  std::vector<Peer> peers;
  for (const std::string& part : parts) {
    const Peer peer = peer_from(part);
    for (std::size_t other = 0; other < peers.size(); ++other) {
      if (peers[other].card == peer.card) {
        throw InvalidArgument(
            fmt::format("nccl transport: ranks {} and {} share one GPU of host {} ({}), which NCCL refuses; start one rank per GPU, or use "
                        "the thread transport, whose ranks may share one",
                        other, peers.size(), peer.host, peer.card));
      }
    }
    if (!peers.empty() && peers.front().version != peer.version) {
      throw BackendUnavailable(fmt::format("nccl transport: rank 0 on {} has NCCL {}, rank {} on {} has {}; install the same on all hosts",
                                           peers.front().host, version_text(std::stoi(peers.front().version)), peers.size(), peer.host,
                                           version_text(std::stoi(peer.version))));
    }
    peers.push_back(peer);
  }
}

std::string make_ids(const Api& api) {
  LaneIds ids;
  for (UniqueId& id : ids) {
    const Result result = api.get_unique_id(&id);
    if (result != Result::success) {
      throw_failure(result, "nccl transport: rank 0 makes the ids of the communicators: " +
                                to_string({result, "ncclGetUniqueId", api.get_error_string(result)}));
    }
  }
  std::string bytes(sizeof(ids), '\0');
  std::memcpy(bytes.data(), ids.data(), sizeof(ids));
  return bytes;
}

LaneIds ids_from(const std::string& bytes) {
  LaneIds ids;
  if (bytes.size() != sizeof(ids)) throw InternalError(fmt::format("nccl transport: rank 0 sent {} bytes of ids", bytes.size()));
  std::memcpy(ids.data(), bytes.data(), sizeof(ids));
  return ids;
}

std::function<bool()> record_event(StreamView stream) {
  const auto event = std::make_shared<cuda::Event>(stream.device().index);
  event->record(stream);
  return [event] { return event->done(); };
}

}  // namespace

Endpoint find_endpoint(int device) {
  const Api& api = library();
  const std::string card = cuda::properties(device).pci_bus_id;
  return {&api, {DeviceKind::cuda, device}, host_name(), fmt::format("{} of boot {}", card, host_id())};
}

Connection connect_lanes(const std::function<Endpoint()>& find, int rank, const AllGatherBytes& all_gather,
                         const TransportOptions& options) {
  Endpoint endpoint;
  const std::vector<std::string> parts = agree(all_gather, rank, [&] {
    if (options.links) throw InvalidArgument("nccl transport: its links cannot be paced; use the thread transport for that");
    endpoint = find();
    return to_bytes(endpoint);
  });
  check_peers(parts);
  Connection connection{static_cast<int>(parts.size()), endpoint.device, std::make_unique<Lanes>(*endpoint.api, options.deadline)};
  const std::string ids = agree(all_gather, rank, [&] { return rank == 0 ? make_ids(*endpoint.api) : std::string(); }).front();
  agree(all_gather, rank, [&] {
    connection.lanes->connect(rank, connection.size, ids_from(ids), endpoint.device.index);
    return std::string();
  });
  return connection;
}

std::shared_ptr<Transport> connect_device(int device, int rank, const AllGatherBytes& all_gather, const TransportOptions& options,
                                          std::optional<Communicator> host) {
  return connect([device] { return find_endpoint(device); }, rank, all_gather, options, record_event, std::move(host));
}

std::string version_text(int version) { return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100); }

}  // namespace nccl

std::string nccl_unavailable_reason() noexcept {
  try {
    nccl::library();
    return cuda::unavailable_reason();
  } catch (const std::exception& error) {
    return error.what();
  }
}

Communicator make_nccl_communicator(int device, const Communicator& bootstrap, const TransportOptions& options) {
  const Stream host;
  const auto all_gather = [&](std::string_view mine) { return bootstrap.all_gather_bytes(mine, host); };
  return Communicator(nccl::connect_device(device, bootstrap.rank(), all_gather, options, bootstrap));
}

}  // namespace periplus::comm
