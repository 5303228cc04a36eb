#include "runtime/comm/pacing.h"

#include <limits>

#include <gtest/gtest.h>

#include "runtime/error.h"

namespace periplus::comm {
namespace {

Links links(Sharing sharing, double latency = 0) { return {{.bytes_per_second = 10, .latency_seconds = latency, .sharing = sharing}}; }

/// Times of arrival of all messages, by number.
std::vector<double> arrivals(Network& network, std::size_t count) {
  std::vector<Network::Arrival> all;
  network.advance(1e6, all);
  std::vector<double> times(count, -1);
  for (const Network::Arrival& arrival : all) times[arrival.message] = arrival.time;
  EXPECT_EQ(network.next_end(), std::numeric_limits<double>::infinity());
  return times;
}

using Times = std::vector<double>;

TEST(Network, OneMessageTakesItsBytesAndItsLatency) {
  Network network(links(Sharing::port, 1), 2);
  network.start(0, 1, 20, 5);
  EXPECT_DOUBLE_EQ(network.next_end(), 7);
  EXPECT_EQ(arrivals(network, 1), (Times{8}));
}

TEST(Network, MessagesOfAPortShareIt) {
  Network network(links(Sharing::port), 3);
  network.start(0, 1, 20, 0);
  network.start(0, 2, 10, 0);  // 5 bytes/s each until 2, then the first has the port for its other 10 bytes
  network.start(1, 0, 30, 0);  // the other direction has ports of its own
  EXPECT_EQ(arrivals(network, 3), (Times{3, 2, 3}));
}

TEST(Network, ALateMessageSlowsTheOthersFromThenOn) {
  Network network(links(Sharing::port), 3);
  network.start(0, 2, 20, 0);
  network.start(1, 2, 20, 1);  // the first has 10 bytes left: both run at 5 bytes/s until 3
  EXPECT_EQ(arrivals(network, 2), (Times{3, 4}));
}

TEST(Network, AllToAllFillsEveryPort) {
  constexpr int kRanks = 5;
  Network network(links(Sharing::port), kRanks);
  for (int from = 0; from < kRanks; ++from) {
    for (int to = 0; to < kRanks; ++to) {
      if (from != to) network.start(from, to, 10, 0);
    }
  }
  for (const double time : arrivals(network, kRanks * (kRanks - 1))) EXPECT_DOUBLE_EQ(time, 4);
}

TEST(Network, HalfDuplexSharesBothDirections) {
  Network network(links(Sharing::half_duplex), 2);
  network.start(0, 1, 20, 0);
  network.start(1, 0, 20, 0);
  EXPECT_EQ(arrivals(network, 2), (Times{4, 4}));
}

TEST(Network, PairsHaveLinksOfTheirOwn) {
  Network network(links(Sharing::pair), 3);
  network.start(0, 1, 20, 0);
  network.start(0, 2, 20, 0);
  network.start(0, 1, 20, 0);
  EXPECT_EQ(arrivals(network, 3), (Times{2, 2, 4})) << "the messages of a pair go one after the other";
}

TEST(Network, NodesHaveLinksOfTheirOwnKind) {
  Network network({{.bytes_per_second = 10}, {.bytes_per_second = 1, .latency_seconds = 3}, 2}, 4);
  network.start(0, 1, 10, 0);
  network.start(1, 2, 10, 0);
  network.start(0, 1, 10, 1);
  EXPECT_EQ(arrivals(network, 3), (Times{1, 13, 2})) << "ranks 1 and 2 are in different nodes";
}

TEST(Network, RanksOfACardShareIt) {
  // Four ranks in two nodes, a card for each node: two messages out of one node take twice as long, those within it do not.
  Links shared{{.bytes_per_second = 10}, {.bytes_per_second = 10}, 2, 2};
  Network network(shared, 4);
  network.start(0, 2, 20, 0);
  network.start(1, 3, 20, 0);
  network.start(0, 1, 20, 0);
  EXPECT_EQ(arrivals(network, 3), (Times{4, 4, 2}));
  shared.ranks_per_nic = 1;
  Network own(shared, 4);
  own.start(0, 2, 20, 0);
  own.start(1, 3, 20, 0);
  EXPECT_EQ(arrivals(own, 2), (Times{2, 2}));
}

TEST(Network, NoLimitIsOnlyLatency) {
  Network network({{.latency_seconds = 2}}, 2);
  network.start(0, 1, std::int64_t{1} << 40, 1);
  network.start(0, 1, 1, 1);
  EXPECT_EQ(arrivals(network, 2), (Times{3, 3}));
}

TEST(Sharing, NamesRoundTrip) {
  for (const Sharing sharing : {Sharing::pair, Sharing::port, Sharing::half_duplex}) {
    EXPECT_EQ(sharing_from_string(to_string(sharing)), sharing);
  }
  EXPECT_THROW(sharing_from_string("bus"), InvalidArgument);
}

}  // namespace
}  // namespace periplus::comm
