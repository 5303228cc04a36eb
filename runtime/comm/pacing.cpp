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
  ports_.assign(ports_of_kind(links.inside.sharing, ranks_), {links.inside.bytes_per_second, {}});
  first_between_ = ports_.size();
  ports_.resize(first_between_ + ports_of_kind(links.between.sharing, ranks_), {links.between.bytes_per_second, {}});
}

std::pair<std::size_t, std::size_t> Network::ports_of(int from, int to) const {
  const bool same_node = links_.same_node(from, to);
  const std::size_t first = same_node ? 0 : first_between_;
  const auto sender = static_cast<std::size_t>(from), receiver = static_cast<std::size_t>(to);
  switch (same_node ? links_.inside.sharing : links_.between.sharing) {
    case Sharing::pair:
      return {first + sender * ranks_ + receiver, first + sender * ranks_ + receiver};
    case Sharing::port:
      return {first + 2 * sender, first + 2 * receiver + 1};
    case Sharing::half_duplex:
      return {first + sender, first + receiver};
  }
  return {};
}

std::size_t Network::start(int from, int to, std::int64_t bytes, double now) {
  const Pacing& pacing = links_.same_node(from, to) ? links_.inside : links_.between;
  const auto [out, in] = ports_of(from, to);
  messages_.push_back({out, in, static_cast<double>(bytes), now, 0, now, pacing.latency_seconds, true});
  const std::size_t message = messages_.size() - 1;
  if (pacing.bytes_per_second <= 0) {
    ends_.emplace(now, message);
    return message;
  }
  ports_[out].messages.push_back(message);
  if (in != out) ports_[in].messages.push_back(message);
  share_again(out, now);
  if (in != out) share_again(in, now);
  return message;
}

/// New rates for all messages of a port whose number of messages has changed.
void Network::share_again(std::size_t port, double now) {
  for (const std::size_t index : ports_[port].messages) {
    Message& m = messages_[index];
    const Port &out = ports_[m.out], &in = ports_[m.in];
    const double rate = std::min(out.bytes_per_second / static_cast<double>(out.messages.size()),
                                 in.bytes_per_second / static_cast<double>(in.messages.size()));
    if (rate == m.rate) continue;
    m.left = std::max(0.0, m.left - m.rate * (now - m.since));
    m.since = now, m.rate = rate;
    m.end = now + m.left / rate;
    ends_.emplace(m.end, index);
  }
}

double Network::next_end() {
  while (!ends_.empty()) {
    const auto [time, message] = ends_.top();
    if (messages_[message].moving && messages_[message].end == time) return time;
    ends_.pop();
  }
  return std::numeric_limits<double>::infinity();
}

void Network::finish(std::size_t message, double now) {
  Message& m = messages_[message];
  m.moving = false;
  for (const std::size_t port : {m.out, m.in}) std::erase(ports_[port].messages, message);
  share_again(m.out, now);
  if (m.in != m.out) share_again(m.in, now);
}

void Network::advance(double now, std::vector<Arrival>& arrivals) {
  for (double end = next_end(); end <= now; end = next_end()) {
    const std::size_t message = ends_.top().second;
    ends_.pop();
    arrivals.push_back({message, end + messages_[message].latency});
    finish(message, end);
  }
}

}  // namespace periplus::comm
