#include "runtime/comm/pacing.h"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include "runtime/error.h"

namespace periplus::comm {
namespace {

constexpr std::array<std::pair<Sharing, std::string_view>, 3> kNames{
    {{Sharing::pair, "pair"}, {Sharing::port, "port"}, {Sharing::half_duplex, "half_duplex"}}};

std::size_t ports_of_kind(Sharing sharing, std::size_t ranks) {
  switch (sharing) {
    case Sharing::pair:
      return ranks * ranks;
    case Sharing::port:
      return 2 * ranks;
    case Sharing::half_duplex:
      return ranks;
  }
  return 0;
}

}  // namespace

std::string_view to_string(Sharing sharing) noexcept { return kNames[static_cast<std::size_t>(sharing)].second; }

Sharing sharing_from_string(std::string_view name) {
  for (const auto& [sharing, known] : kNames) {
    if (known == name) return sharing;
  }
  throw InvalidArgument(fmt::format("sharing '{}' is not known; use pair, port or half_duplex", name));
}

Network::Network(const Links& links, int ranks) : links_(links), ranks_(static_cast<std::size_t>(ranks)) {
  const auto nic = static_cast<std::size_t>(std::max(1, links.ranks_per_nic));
  ports_.assign(ports_of_kind(links.inside.sharing, ranks_), {links.inside.bytes_per_second, {}});
  const std::size_t first_between = ports_.size();
  ports_.resize(first_between + ports_of_kind(links.between.sharing, ranks_), {links.between.bytes_per_second, {}});
  for (std::size_t from = 0; from < ranks_; ++from) {
    for (std::size_t to = 0; to < ranks_; ++to) {
      const bool same_node = links.same_node(static_cast<int>(from), static_cast<int>(to));
      const std::size_t first = same_node ? 0 : first_between;
      const std::size_t out = same_node ? from : from / nic, in = same_node ? to : to / nic;
      switch (same_node ? links.inside.sharing : links.between.sharing) {
        case Sharing::pair:
          pairs_.push_back({first + from * ranks_ + to, first + from * ranks_ + to});
          break;
        case Sharing::port:
          pairs_.push_back({first + 2 * out, first + 2 * in + 1});
          break;
        case Sharing::half_duplex:
          pairs_.push_back({first + out, first + in});
          break;
      }
    }
  }
}

std::size_t Network::start(int from, int to, std::int64_t bytes, double now) {
  if (now > changed_since_) share_again();
  const std::size_t message = messages_.size();
  messages_.push_back({static_cast<double>(bytes), (links_.same_node(from, to) ? links_.inside : links_.between).latency_seconds});
  const std::size_t index = static_cast<std::size_t>(from) * ranks_ + static_cast<std::size_t>(to);
  Pair& pair = pairs_[index];
  const bool idle = pair.idle();
  pair.queue.push_back(message);
  if (!idle) return message;
  pair.rate = 0;
  ports_[pair.out].pairs.push_back(index);
  if (pair.in != pair.out) ports_[pair.in].pairs.push_back(index);
  begin_first(index, now);
  mark_changed(pair.out, now);
  mark_changed(pair.in, now);
  return message;
}

void Network::begin_first(std::size_t index, double now) {
  Pair& pair = pairs_[index];
  pair.left = messages_[pair.queue[pair.head]].bytes;
  pair.since = now;
  pair.end = pair.rate > 0 ? now + pair.left / pair.rate : std::numeric_limits<double>::infinity();
  if (pair.rate > 0) ends_.emplace(pair.end, index);
}

void Network::set_rate(std::size_t index, double now) {
  Pair& pair = pairs_[index];
  const auto share = [&](std::size_t port) {
    const double all = ports_[port].bytes_per_second;
    return all > 0 ? all / static_cast<double>(ports_[port].pairs.size()) : std::numeric_limits<double>::infinity();
  };
  const double rate = std::min(share(pair.out), share(pair.in));
  if (rate == pair.rate) return;
  pair.left = std::max(0.0, pair.left - pair.rate * (now - pair.since));
  pair.since = now, pair.rate = rate;
  pair.end = now + pair.left / rate;
  ends_.emplace(pair.end, index);
}

void Network::mark_changed(std::size_t port, double now) {
  changed_since_ = now;
  if (std::exchange(ports_[port].changed, true)) return;
  changed_ports_.push_back(port);
}

/// For all pairs of ports whose number of pairs has changed. Put off until time goes on: of the messages of an all-to-all, which
/// start at one time, each would change the rates of all others.
void Network::share_again() {
  for (const std::size_t port : changed_ports_) {
    for (const std::size_t index : ports_[port].pairs) set_rate(index, changed_since_);
    ports_[port].changed = false;
  }
  changed_ports_.clear();
}

double Network::next_end() {
  share_again();
  while (!ends_.empty()) {
    const auto [time, index] = ends_.top();
    if (!pairs_[index].idle() && pairs_[index].end == time) return time;
    ends_.pop();
  }
  return std::numeric_limits<double>::infinity();
}

void Network::advance(double now, std::vector<Arrival>& arrivals) {
  for (double end = next_end(); end <= now; end = next_end()) {
    while (!ends_.empty() && ends_.top().first == end) {
      const std::size_t index = ends_.top().second;
      ends_.pop();
      if (!pairs_[index].idle() && pairs_[index].end == end) end_first(index, end, arrivals);
    }
  }
}

void Network::end_first(std::size_t index, double end, std::vector<Arrival>& arrivals) {
  Pair& pair = pairs_[index];
  const std::size_t message = pair.queue[pair.head];
  arrivals.push_back({message, end + messages_[message].latency});
  if (++pair.head < pair.queue.size()) {
    begin_first(index, end);
    return;
  }
  pair.queue.clear(), pair.head = 0;
  std::erase(ports_[pair.out].pairs, index);
  if (pair.in != pair.out) std::erase(ports_[pair.in].pairs, index);
  mark_changed(pair.out, end);
  mark_changed(pair.in, end);
}

}  // namespace periplus::comm
