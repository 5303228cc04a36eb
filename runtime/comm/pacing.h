#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace periplus::comm {

/// What shares a link's bandwidth.
enum class Sharing {
  pair,        ///< Every ordered pair of ranks has a link of its own: a full mesh.
  port,        ///< All that a rank sends shares one port, all that it receives another: full duplex.
  half_duplex  ///< One port for both directions.
};
std::string_view to_string(Sharing sharing) noexcept;
/// Throws InvalidArgument that lists the names.
Sharing sharing_from_string(std::string_view name);

struct Pacing {
  double bytes_per_second = 0;  ///< 0: no limit.
  double latency_seconds = 0;   ///< From a message's last byte leaving to its arrival; does not occupy the link.
  Sharing sharing = Sharing::port;
};

/// The network between ranks: one kind of link, or a fast one inside nodes and another between them.
struct Links {
  Pacing inside = {}, between = {};
  int ranks_per_node = 0;  ///< Consecutive ranks; 0: all ranks are one node.
  bool same_node(int a, int b) const noexcept { return ranks_per_node <= 0 || a / ranks_per_node == b / ranks_per_node; }
};

/// When messages arrive: each occupies its links from the moment that both its ends and all of them are free, in the order
/// of the calls. The thread transport asks it by the wall clock, the simulator by its own. Not thread-safe.
class LinkClock {
 public:
  LinkClock(const Links& links, int ranks);
  /// Arrival, in seconds, of a message whose ends are ready at `ready`. Calls come with times that do not fall.
  double arrival(int from, int to, std::int64_t bytes, double ready);

 private:
  Links links_;
  std::size_t ranks_;
  std::vector<double> inside_, between_;  ///< When ports are free: by pair, or [rank][sends, receives], or by rank.
};

}  // namespace periplus::comm
