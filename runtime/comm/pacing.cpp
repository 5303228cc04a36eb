#include "runtime/comm/pacing.h"

#include <algorithm>
#include <array>
#include <utility>

#include <fmt/format.h>

#include "runtime/error.h"

namespace periplus::comm {
namespace {

constexpr std::array<std::pair<Sharing, std::string_view>, 3> kNames{
    {{Sharing::pair, "pair"}, {Sharing::port, "port"}, {Sharing::half_duplex, "half_duplex"}}};

std::size_t ports_of(Sharing sharing, std::size_t ranks) {
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

LinkClock::LinkClock(const Links& links, int ranks) : links_(links), ranks_(static_cast<std::size_t>(ranks)) {
  inside_.assign(ports_of(links.inside.sharing, ranks_), 0);
  between_.assign(ports_of(links.between.sharing, ranks_), 0);
}

double LinkClock::arrival(int from, int to, std::int64_t bytes, double ready) {
  const bool same_node = links_.same_node(from, to);
  const Pacing& pacing = same_node ? links_.inside : links_.between;
  if (pacing.bytes_per_second <= 0) return ready + pacing.latency_seconds;
  std::vector<double>& free = same_node ? inside_ : between_;
  const auto sender = static_cast<std::size_t>(from), receiver = static_cast<std::size_t>(to);
  const auto [out, in] = [&]() -> std::pair<std::size_t, std::size_t> {
    if (pacing.sharing == Sharing::pair) return {sender * ranks_ + receiver, sender * ranks_ + receiver};
    if (pacing.sharing == Sharing::port) return {2 * sender, 2 * receiver + 1};
    return {sender, receiver};
  }();
  const double end = std::max({ready, free[out], free[in]}) + static_cast<double>(bytes) / pacing.bytes_per_second;
  free[out] = free[in] = end;
  return end + pacing.latency_seconds;
}

}  // namespace periplus::comm
