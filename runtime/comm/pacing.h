#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <queue>
#include <string_view>
#include <utility>
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
  int ranks_per_nic = 1;   ///< Consecutive ranks that share a network card: a port (or half-duplex port) between nodes.
  bool same_node(int a, int b) const noexcept { return ranks_per_node <= 0 || a / ranks_per_node == b / ranks_per_node; }
};

/// Messages in flight over links. Those of an ordered pair of ranks go one after the other; pairs that share a port share its
/// bandwidth equally, and one moves at the smaller of its shares at both ends. A message arrives its latency after its last
/// byte has left. Time is the caller's, in seconds: the thread transport's is the wall clock, the simulator has its own. Not
/// thread-safe. Cost of a start or an end: O(pairs at its two ports) and a logarithm, once for all at the same time.
class Network {
 public:
  Network(const Links& links, int ranks);

  /// A message starts to move; returns its number, 0, 1, 2, ... Times of all calls must not fall.
  std::size_t start(int from, int to, std::int64_t bytes, double now);
  /// When the next message will have left if no other starts before; infinity if none is moving.
  double next_end();
  struct Arrival {
    std::size_t message;
    double time;
  };
  /// Appends the messages whose last byte has left by `now`, with their times of arrival.
  void advance(double now, std::vector<Arrival>& arrivals);

 private:
  struct Message {
    double bytes, latency;
  };
  /// The messages of an ordered pair: the first is moving.
  struct Pair {
    std::size_t out = 0, in = 0;  ///< Ports.
    std::vector<std::size_t> queue = {};
    std::size_t head = 0;  ///< The first of `queue` that has not left. A deque would take half a kilobyte a pair.
    bool idle() const noexcept { return head == queue.size(); }
    double left = 0, since = 0, rate = 0;  ///< Bytes of the first message at `since`.
    double end = 0;                        ///< Of the first message, at the present rate.
  };
  struct Port {
    double bytes_per_second;
    std::vector<std::size_t> pairs;  ///< Those with messages.
    bool changed = false;            ///< Their number has changed, and their rates are out of date.
  };
  using End = std::pair<double, std::size_t>;

  void mark_changed(std::size_t port, double now);
  void share_again();
  void set_rate(std::size_t pair, double now);
  void begin_first(std::size_t pair, double now);
  void end_first(std::size_t pair, double end, std::vector<Arrival>& arrivals);

  Links links_;
  std::size_t ranks_;
  std::vector<Port> ports_;  ///< Of links inside nodes, then between.
  std::vector<std::size_t> changed_ports_;
  double changed_since_ = 0;
  std::vector<Pair> pairs_;  ///< [from][to]
  std::vector<Message> messages_;
  std::priority_queue<End, std::vector<End>, std::greater<>> ends_;  ///< Some are out of date: a pair's own `end` decides.
};

}  // namespace periplus::comm
