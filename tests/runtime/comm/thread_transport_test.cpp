#include "runtime/comm/thread_transport.h"

#include <atomic>
#include <memory>
#include <thread>

#include <gtest/gtest.h>
#include <omp.h>

#include "conformance.h"
#include "runtime/error.h"

namespace periplus::comm {
namespace {

using conformance::Bytes;
using conformance::exchange;
using conformance::from;
using conformance::stream;
using conformance::to;

class ThreadTransportConformance : public testing::TestWithParam<int> {};

TEST_P(ThreadTransportConformance, Holds) {
  for (const conformance::Case& item : conformance::all_cases()) {
    SCOPED_TRACE(item.name);
    EXPECT_NO_THROW(run_thread_ranks(GetParam(), item.body, {.deadline = item.deadline}));
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, ThreadTransportConformance, testing::Values(1, 2, 3, 4, 8), testing::PrintToStringParamName());

/// Two groups side by side, between ranks that are in neither; and a group of a group.
TEST_P(ThreadTransportConformance, HoldsInGroups) {
  const int ranks = GetParam();
  for (const auto cases : {conformance::message_cases(), conformance::collective_cases()}) {
    for (const conformance::Case& item : cases) {
      SCOPED_TRACE(item.name);
      for (const bool nested : {false, true}) {
        const auto body = [&](const Communicator& communicator) {
          const int place = communicator.rank() - 1;
          if (place < 0 || place >= 2 * ranks) return;
          const int first = 1 + place / ranks * ranks;
          const Communicator group = nested ? communicator.group(1, 2 * ranks).group(first - 1, ranks) : communicator.group(first, ranks);
          EXPECT_EQ(group.outermost(0), first);
          item.body(group);
        };
        EXPECT_NO_THROW(run_thread_ranks(2 * ranks + 2, body, {.deadline = item.deadline}));
      }
    }
  }
}

TEST(Group, RefusesRanksThatAreNotThere) {
  run_thread_ranks(3, [](const Communicator& communicator) {
    EXPECT_THROW(communicator.group(-1, 2), InvalidArgument);
    EXPECT_THROW(communicator.group(0, 0), InvalidArgument);
    EXPECT_THROW(communicator.group(2, 2), InvalidArgument);
    EXPECT_THROW(communicator.group((communicator.rank() + 1) % 3, 1), InvalidArgument);
    EXPECT_EQ(communicator.group(communicator.rank(), 1).size(), 1);
  });
  EXPECT_EQ(Communicator().group(0, 1).size(), 1);
}

TEST(Group, AnAbortReachesRanksOutsideIt) {
  run_thread_ranks(3, [](const Communicator& communicator) {
    if (communicator.rank() < 2) communicator.group(0, 2).abort("the test ends it");
    std::byte byte{};
    const int peer = (communicator.rank() + 1) % 3;
    const Receive receive{peer, &byte, 1};
    EXPECT_THROW(communicator.exchange({}, {&receive, 1}, {}, stream()).wait(), CommError);
  });
}

TEST_P(ThreadTransportConformance, HoldsOverPacedLinks) {
  for (const Sharing sharing : {Sharing::pair, Sharing::port, Sharing::half_duplex}) {
    const Links links{{.bytes_per_second = 4e9, .latency_seconds = 20e-6, .sharing = sharing}, {.bytes_per_second = 2e9}, 2};
    for (const conformance::Case& item : conformance::all_cases()) {
      SCOPED_TRACE(item.name);
      EXPECT_NO_THROW(run_thread_ranks(GetParam(), item.body, {.deadline = item.deadline, .links = links}));
    }
  }
}

TEST(ThreadTransport, PacedMessagesArriveWhenTheirLinksBringThem) {
  const Links links{{.bytes_per_second = 10e6, .latency_seconds = 0.005, .sharing = Sharing::port}};
  run_thread_ranks(
      3,
      [](const Communicator& communicator) {
        // Every rank sends 100 kB to both others: 20 ms through its port, and the latency.
        const int next = (communicator.rank() + 1) % 3, previous = (communicator.rank() + 2) % 3;
        const Bytes data(100'000);
        Bytes first(data.size()), second(data.size());
        communicator.barrier(stream());
        const auto begin = std::chrono::steady_clock::now();
        Pending pending = exchange(communicator, {to(next, data), to(previous, data)}, {from(previous, first), from(next, second)});
        EXPECT_FALSE(pending.done());
        pending.wait();
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
        EXPECT_GE(seconds, 0.025 - 1e-3);
        EXPECT_LE(seconds, 0.25);
        communicator.barrier(stream());
      },
      {.links = links});
}

TEST(GroupOfOne, WorksWithoutTransport) {
  for (const auto& cases : {conformance::message_cases(), conformance::collective_cases()}) {
    for (const conformance::Case& item : cases) {
      SCOPED_TRACE(item.name);
      EXPECT_NO_THROW(item.body(Communicator()));
    }
  }
  EXPECT_EQ(Communicator().transport_name(), "none");
}

TEST(ThreadTransport, NamesItselfAndItsRanks) {
  const std::vector<Communicator> group = make_thread_group(3);
  EXPECT_EQ(group[2].rank(), 2);
  EXPECT_EQ(group[2].size(), 3);
  EXPECT_EQ(group[2].transport_name(), "thread");
  EXPECT_THROW(make_thread_group(0), InvalidArgument);
}

TEST(ThreadTransport, RankThatThrowsEndsTheWaitsOfTheOthers) {
  std::atomic<int> told{0};
  const auto start = std::chrono::steady_clock::now();
  const auto body = [&](const Communicator& communicator) {
    if (communicator.rank() == 1) throw std::out_of_range("token 77 is not in the vocabulary");
    Bytes data(16);
    try {
      exchange(communicator, {}, {from(1, data)}).wait();
    } catch (const CommError& error) {
      const std::string message = error.what();
      if (message.find("rank 1 of 4 failed: token 77") != std::string::npos &&
          message.find("receive 16 bytes from rank 1") != std::string::npos)
        ++told;
      throw;
    }
  };
  EXPECT_THROW(run_thread_ranks(4, body), std::out_of_range);
  EXPECT_EQ(told, 3);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(1));
}

TEST(ThreadTransport, DeadlineOfOneRankReachesTheOthersAndIsTheReportedFailure) {
  try {
    run_thread_ranks(3,
                     [](const Communicator& communicator) {
                       Bytes data(8);
                       if (communicator.rank() == 2) std::this_thread::sleep_for(std::chrono::milliseconds(100));
                       if (communicator.rank() != 1) exchange(communicator, {}, {from(1, data)}, {.operation = "hop", .step = 5}).wait();
                     },
                     {.deadline = std::chrono::milliseconds(200)});
    FAIL() << "the deadline passed unnoticed";
  } catch (const CommError& error) {
    EXPECT_EQ(std::string(error.what())
                  .find("rank 0 of 3: not finished after 0.2 s: exchange 'hop' (plan step 5, lane 0): receive 8 bytes from rank 1"),
              0U)
        << error.what();
  }
}

TEST(ThreadTransport, SizeMismatchNamesBothSidesOnBothRanks) {
  std::vector<std::string> messages(2);
  const auto body = [&](const Communicator& communicator) {
    Bytes data(100);
    const bool sender = communicator.rank() == 0;
    const Purpose purpose{.operation = sender ? "ring kv" : "ring dkv", .step = sender ? 3 : 4};
    try {
      if (sender) exchange(communicator, {to(1, data)}, {}, purpose).wait();
      if (!sender) exchange(communicator, {}, {{0, data.data(), 60}}, purpose).wait();
    } catch (const CommError& error) {
      messages[static_cast<std::size_t>(communicator.rank())] = error.what();
    }
  };
  run_thread_ranks(2, body);
  for (const std::string& message : messages) {
    EXPECT_NE(message.find("rank 0 sends 100 bytes in 'ring kv' (plan step 3, lane 0)"), std::string::npos) << message;
    EXPECT_NE(message.find("rank 1 receives 60 bytes in 'ring dkv' (plan step 4, lane 0)"), std::string::npos) << message;
  }
}

// A stream of a device can be named without a device: nothing is enqueued before both ends have met.
TEST(ThreadTransport, EndsOnHostAndDeviceAreRefusedOnBothRanks) {
  const Stream device({DeviceKind::cuda, 0}, nullptr);
  std::vector<std::string> messages(2);
  run_thread_ranks(2, [&](const Communicator& communicator) {
    Bytes data(8);
    try {
      if (communicator.rank() == 0) exchange(communicator, {to(1, data)}, {}).wait();
      if (communicator.rank() == 1) {
        const Receive receive = from(0, data);
        communicator.exchange({}, {&receive, 1}, {}, device).wait();
      }
    } catch (const CommError& error) {
      messages[static_cast<std::size_t>(communicator.rank())] = error.what();
    }
  });
  for (const std::string& message : messages) {
    EXPECT_NE(message.find("message ends disagree"), std::string::npos) << message;
    EXPECT_NE(message.find("rank 0 sends 8 bytes in 'exchange'"), std::string::npos) << message;
    EXPECT_NE(message.find("rank 1 receives 8 bytes of cuda:0 memory in 'exchange'"), std::string::npos) << message;
  }
}

TEST(ThreadTransport, WhatItCannotDoOnADeviceIsRefused) {
  const Stream device({DeviceKind::cuda, 0}, nullptr);
  const auto message = [](auto&& body) -> std::string {
    try {
      body();
    } catch (const InvalidArgument& error) {
      return error.what();
    }
    return "not refused";
  };
  EXPECT_EQ(make_thread_group(2)[0].refusal(device.device()), "");
  EXPECT_EQ(make_thread_group(2, {.links = Links{{.bytes_per_second = 1e9}}})[0].refusal(device.device()), "");
  const Tensor tensor = Tensor::zeros({4}, DType::f32, Memory());
  const std::int64_t counts[] = {4};
  const Communicator one;
  EXPECT_NE(message([&] { one.all_reduce(tensor, Reduce::sum, device); }).find("all_reduce: this verb works on host memory"),
            std::string::npos);
  EXPECT_NE(message([&] { one.reduce_scatter(tensor, tensor, counts, device); }).find("reduce_scatter: this verb"), std::string::npos);
  EXPECT_NE(message([&] { one.broadcast(tensor, 0, device); }).find("broadcast: this verb"), std::string::npos);
  EXPECT_NE(message([&] { one.barrier(device); }).find("barrier: this verb"), std::string::npos);
  EXPECT_NE(message([&] { one.all_gather_bytes("x", device); }).find("all_gather_bytes: this verb"), std::string::npos);
  EXPECT_NE(message([&] { require_same_on_all_ranks(one, 1, "x", device); }).find("require_same_on_all_ranks: this verb"),
            std::string::npos);
}

TEST(ThreadTransport, ExceptionThroughAnUnfinishedExchangeAbortsInsteadOfWaiting) {
  const auto start = std::chrono::steady_clock::now();
  const auto body = [](const Communicator& communicator) {
    Bytes data(8);
    const int peer = 1 - communicator.rank();
    Pending pending = exchange(communicator, {}, {from(peer, data)});
    if (communicator.rank() == 0) throw std::domain_error("stop");
    pending.wait();
  };
  EXPECT_THROW(run_thread_ranks(2, body), std::domain_error);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(1));
}

TEST(ThreadTransport, AbortedGroupRefusesNewExchanges) {
  const std::vector<Communicator> group = make_thread_group(2);
  group[0].abort("first reason");
  group[1].abort("second reason");
  Bytes data(8);
  try {
    exchange(group[1], {to(0, data)}, {});
    FAIL() << "an aborted group accepted a message";
  } catch (const CommError& error) {
    EXPECT_NE(std::string(error.what()).find("first reason"), std::string::npos) << error.what();
  }
}

// Meant for the address and thread sanitizers: a peer's copy must not touch memory that an aborted rank has freed.
TEST(ThreadTransport, AbortDuringCopiesTouchesNoFreedMemory) {
  for (int round = 0; round < 60; ++round) {
    const auto body = [round](const Communicator& communicator) {
      if (communicator.rank() == 2) {
        for (int spin = 0; spin < round * 20; ++spin) communicator.progress();
        throw std::runtime_error("third rank stops");
      }
      const int peer = 1 - communicator.rank();
      for (int k = 0;; ++k) {
        auto outgoing = std::make_unique<Bytes>(1 << 19);
        auto incoming = std::make_unique<Bytes>(1 << 19);
        exchange(communicator, {to(peer, *outgoing)}, {from(peer, *incoming)}).wait();
      }
    };
    EXPECT_THROW(run_thread_ranks(3, body), std::runtime_error);
  }
}

TEST(ThreadTransport, ManyRanksOnFewCoresMakeProgress) {
  run_thread_ranks(32, [](const Communicator& communicator) {
    for (int round = 0; round < 5; ++round) {
      std::vector<std::int64_t> value{communicator.rank()};
      communicator.all_reduce(TensorView(reinterpret_cast<std::byte*>(value.data()), DType::i64, {1}), Reduce::sum, stream());
      EXPECT_EQ(value[0], 32 * 31 / 2);
      communicator.barrier(stream());
    }
  });
}

TEST(ThreadTransport, RanksShareTheCores) {
  for (const auto& [ranks, threads, team] : {std::array{2, 8, 4}, std::array{3, 8, 2}, std::array{4, 2, 1}}) {
    run_thread_ranks(
        ranks, [expected = team](const Communicator&) { EXPECT_EQ(omp_get_max_threads(), expected); }, {}, threads);
  }
}

}  // namespace
}  // namespace periplus::comm
