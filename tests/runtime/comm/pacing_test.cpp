#include "runtime/comm/pacing.h"

#include <gtest/gtest.h>

#include "runtime/error.h"

namespace periplus::comm {
namespace {

Links links(Sharing sharing) { return {{.bytes_per_second = 10, .latency_seconds = 1, .sharing = sharing}}; }

TEST(LinkClock, MessagesOfAPortGoOneAfterTheOther) {
  LinkClock clock(links(Sharing::port), 3);
  EXPECT_DOUBLE_EQ(clock.arrival(0, 1, 20, 5), 8) << "5, 2 s of link, 1 s of latency";
  EXPECT_DOUBLE_EQ(clock.arrival(0, 2, 20, 5), 10) << "behind the first; the latency occupies nothing";
  EXPECT_DOUBLE_EQ(clock.arrival(2, 1, 10, 6), 9) << "the receiving port of rank 1 is free at 7";
  EXPECT_DOUBLE_EQ(clock.arrival(1, 0, 10, 6), 8) << "the other direction is another port";
  EXPECT_DOUBLE_EQ(clock.arrival(1, 0, 10, 20), 22);
}

TEST(LinkClock, HalfDuplexSharesBothDirections) {
  LinkClock clock(links(Sharing::half_duplex), 3);
  EXPECT_DOUBLE_EQ(clock.arrival(0, 1, 20, 0), 3);
  EXPECT_DOUBLE_EQ(clock.arrival(1, 2, 20, 0), 5) << "rank 1 is receiving until 2";
}

TEST(LinkClock, PairsHaveLinksOfTheirOwn) {
  LinkClock clock(links(Sharing::pair), 3);
  EXPECT_DOUBLE_EQ(clock.arrival(0, 1, 20, 0), 3);
  EXPECT_DOUBLE_EQ(clock.arrival(0, 2, 20, 0), 3);
  EXPECT_DOUBLE_EQ(clock.arrival(0, 1, 20, 0), 5);
}

TEST(LinkClock, NodesHaveLinksOfTheirOwnKind) {
  LinkClock clock({{.bytes_per_second = 10}, {.bytes_per_second = 1}, 2}, 4);
  EXPECT_DOUBLE_EQ(clock.arrival(0, 1, 10, 0), 1);
  EXPECT_DOUBLE_EQ(clock.arrival(1, 2, 10, 0), 10) << "ranks 1 and 2 are in different nodes";
  EXPECT_DOUBLE_EQ(clock.arrival(0, 1, 10, 1), 2) << "and do not hold up those inside";
}

TEST(LinkClock, NoLimitIsOnlyLatency) {
  LinkClock clock({{.latency_seconds = 2}}, 2);
  EXPECT_DOUBLE_EQ(clock.arrival(0, 1, 1 << 30, 1), 3);
  EXPECT_DOUBLE_EQ(clock.arrival(0, 1, 1 << 30, 1), 3);
}

TEST(Sharing, NamesRoundTrip) {
  for (const Sharing sharing : {Sharing::pair, Sharing::port, Sharing::half_duplex}) {
    EXPECT_EQ(sharing_from_string(to_string(sharing)), sharing);
  }
  EXPECT_THROW(sharing_from_string("bus"), InvalidArgument);
}

}  // namespace
}  // namespace periplus::comm
