#include <atomic>
#include <thread>

#include <gtest/gtest.h>

#include "conformance.h"
#include "fake_nccl.h"
#include "runtime/comm/nccl_transport.h"
#include "runtime/comm/thread_transport.h"
#include "runtime/error.h"
#include "runtime/tensor.h"

namespace periplus::comm {
namespace {

using conformance::Bytes;
using conformance::exchange;
using conformance::from;
using conformance::stream;
using conformance::to;
using fake_nccl::Fault;
using fake_nccl::State;
using nccl::Result;
using std::chrono::milliseconds;

constexpr Purpose kRing{.operation = "ring kv", .step = 12, .lane = 1};

nccl::Endpoint endpoint(int rank, const nccl::Api& api = fake_nccl::api()) {
  return {&api, Device{}, "node" + std::to_string(rank / 8), "card " + std::to_string(rank)};
}

nccl::AllGatherBytes gather_over(const Communicator& bootstrap) {
  return [&bootstrap](std::string_view mine) { return bootstrap.all_gather_bytes(mine, stream()); };
}

Communicator connect(const Communicator& bootstrap, milliseconds deadline, const nccl::RecordMark& record_mark = {}) {
  const int rank = bootstrap.rank();
  return Communicator(nccl::connect([rank] { return endpoint(rank); }, rank, gather_over(bootstrap), {.deadline = deadline}, record_mark));
}

/// What each rank reports, empty where nothing went wrong. Only errors that the transport may throw are caught.
std::vector<std::string> failures(int ranks, const std::function<void(const Communicator&)>& body) {
  std::vector<std::string> messages(static_cast<std::size_t>(ranks));
  run_thread_ranks(ranks, [&](const Communicator& bootstrap) {
    std::string& message = messages[static_cast<std::size_t>(bootstrap.rank())];
    try {
      body(bootstrap);
    } catch (const CommError& error) {
      message = error.what();
    } catch (const DeviceError& error) {
      message = error.what();
    } catch (const BackendUnavailable& error) {
      message = error.what();
    }
  });
  return messages;
}

class NcclConformance : public testing::TestWithParam<int> {};

/// NCCL cannot compare the sizes of both ends; SizesThatDisagreeEndAtTheDeadline has what it does instead.
bool compares_sizes(const conformance::Case& item) { return item.name.find("message_than_expected") != std::string_view::npos; }

TEST_P(NcclConformance, Holds) {
  int skipped = 0;
  for (const conformance::Case& item : conformance::all_cases()) {
    SCOPED_TRACE(item.name);
    if (compares_sizes(item)) {
      ++skipped;
      continue;
    }
    EXPECT_NO_THROW(run_thread_ranks(GetParam(), [&](const Communicator& bootstrap) { item.body(connect(bootstrap, item.deadline)); }));
  }
  EXPECT_EQ(skipped, 2);
}

TEST_P(NcclConformance, HoldsInGroups) {
  const int ranks = GetParam();
  for (const auto cases : {conformance::message_cases(), conformance::collective_cases()}) {
    for (const conformance::Case& item : cases) {
      SCOPED_TRACE(item.name);
      EXPECT_NO_THROW(run_thread_ranks(2 * ranks, [&](const Communicator& bootstrap) {
        const Communicator all = connect(bootstrap, item.deadline);
        item.body(all.group(all.rank() / ranks * ranks, ranks));
      }));
    }
  }
}

// Its messages are elsewhere, so everything in host memory takes the way of the bootstrap.
TEST_P(NcclConformance, HoldsInHostMemoryBesideADevice) {
  for (const conformance::Case& item : conformance::all_cases()) {
    SCOPED_TRACE(item.name);
    EXPECT_NO_THROW(run_thread_ranks(
        GetParam(),
        [&](const Communicator& bootstrap) {
          const int rank = bootstrap.rank();
          const auto find = [rank] {
            nccl::Endpoint end = endpoint(rank);
            end.device = {DeviceKind::cuda, rank};
            return end;
          };
          item.body(Communicator(nccl::connect(find, rank, gather_over(bootstrap), {.deadline = item.deadline}, {}, bootstrap)));
        },
        {.deadline = item.deadline}));
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, NcclConformance, testing::Values(1, 2, 3, 4, 8), testing::PrintToStringParamName());

std::string_view name_of(State state) {
  switch (state) {
    case State::unique_id:
      return "unique_id";
    case State::init:
      return "init";
    case State::init_poll:
      return "init_poll";
    case State::send:
      return "send";
    case State::receive:
      return "receive";
    case State::all_gather:
      return "all_gather";
    case State::group_end:
      return "group_end";
    case State::exchange_poll:
      return "exchange_poll";
    case State::abort:
      return "abort";
    case State::finalize:
      return "finalize";
  }
  return "";
}

std::string_view name_of(Result code) {
  switch (code) {
    case Result::unhandled_cuda_error:
      return "ncclUnhandledCudaError";
    case Result::system_error:
      return "ncclSystemError";
    case Result::internal_error:
      return "ncclInternalError";
    case Result::invalid_usage:
      return "ncclInvalidUsage";
    case Result::remote_error:
      return "ncclRemoteError";
    case Result::in_progress:
      return "ncclInProgress";
    default:
      return "";
  }
}

enum class Verb { exchange, all_gather };

/// 64 bytes from each of two ranks to the other.
void meet(const Communicator& communicator, Verb verb) {
  if (verb == Verb::all_gather) {
    const Tensor all = Tensor::zeros({2 * 16}, DType::i32, Memory());
    const std::vector<std::int64_t> counts(2, 16);
    return communicator.all_gather(all.view().slice(0, 16 * communicator.rank(), 16), all.view(), counts, stream());
  }
  const int peer = 1 - communicator.rank();
  Bytes outgoing(64), incoming(64);
  exchange(communicator, {to(peer, outgoing)}, {from(peer, incoming)}, kRing).wait();
}

/// Parts of the message of the rank on which `fault` happens.
std::vector<std::string> expected(const Fault& fault, Verb verb) {
  const bool for_ever = fault.code == Result::in_progress;
  std::vector<std::string> parts{"rank 0"};
  const auto add = [&](std::initializer_list<std::string> more) { parts.insert(parts.end(), more); };
  if (for_ever && fault.state != State::unique_id) {
    add({"not finished after 0.", "--deadline"});
  } else {
    parts.emplace_back(name_of(fault.code));
  }
  if (fault.state == State::unique_id) add({"ncclGetUniqueId"});
  if (fault.state == State::init || fault.state == State::init_poll) add({"connecting lane 0 of 4", "ncclCommInitRankConfig"});
  if (fault.state >= State::send) {
    add({verb == Verb::exchange ? "exchange 'ring kv' (plan step 12, lane 1)" : "exchange 'all_gather' (lane 3)",
         "receive 64 bytes from rank 1", "send 64 bytes to rank 1"});
    if (!for_ever && fault.state == State::send) add({"ncclSend says"});
    if (!for_ever && fault.state == State::receive) add({"ncclRecv says"});
    if (!for_ever && fault.state == State::all_gather) add({"ncclAllGather says"});
    if (!for_ever && fault.state == State::group_end) add({"ncclGroupEnd says"});
    if (!for_ever && fault.state >= State::exchange_poll) add({"ncclCommGetAsyncError says"});
  }
  return parts;
}

constexpr State kStates[] = {State::unique_id, State::init,      State::init_poll,     State::send,
                             State::receive,   State::group_end, State::exchange_poll, State::abort};
constexpr Result kCodes[] = {Result::unhandled_cuda_error, Result::system_error, Result::internal_error,
                             Result::invalid_usage,        Result::remote_error, Result::in_progress};

class NcclFault : public testing::TestWithParam<std::tuple<State, Result, Verb>> {};

TEST_P(NcclFault, EndsInAnErrorThatSaysWhatWasUnderWay) {
  const Fault fault{std::get<0>(GetParam()), std::get<1>(GetParam())};
  const Verb verb = std::get<2>(GetParam());
  const fake_nccl::Counts before = fake_nccl::counts();
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::string> messages;
  {
    const fake_nccl::Injection injection(fault);
    messages = failures(2, [&](const Communicator& bootstrap) { meet(connect(bootstrap, milliseconds(300)), verb); });
    // Own deadline, the other rank's, and two limits of an abort; far from that of the bootstrap.
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
  }
  for (const std::string& part : expected(fault, verb)) {
    EXPECT_NE(messages[0].find(part), std::string::npos) << "lacks '" << part << "': " << messages[0];
  }
  if (fault.state <= State::init_poll) {
    EXPECT_FALSE(messages[1].empty()) << "rank 1 must not go on in a group that never was";
  }
  const fake_nccl::Counts after = fake_nccl::counts();
  EXPECT_EQ(after.made - before.made, after.destroyed - before.destroyed + after.aborted - before.aborted) << "every communicator ends";
  if (after.made > before.made) {
    EXPECT_GT(after.aborted, before.aborted);
  }
}

std::string name_of_fault(const testing::TestParamInfo<std::tuple<State, Result, Verb>>& test) {
  return std::string(name_of(std::get<0>(test.param))) + "_" + std::string(name_of(std::get<1>(test.param)));
}
INSTANTIATE_TEST_SUITE_P(CodesAndStates, NcclFault,
                         testing::Combine(testing::ValuesIn(kStates), testing::ValuesIn(kCodes), testing::Values(Verb::exchange)),
                         name_of_fault);
INSTANTIATE_TEST_SUITE_P(CodesAndStatesOfAllGather, NcclFault,
                         testing::Combine(testing::Values(State::all_gather, State::group_end, State::exchange_poll, State::abort),
                                          testing::ValuesIn(kCodes), testing::Values(Verb::all_gather)),
                         name_of_fault);

TEST(NcclTransport, EqualSharesAreGatheredByNcclItself) {
  for (const auto& counts : {std::vector<std::int64_t>{5, 5, 5}, std::vector<std::int64_t>{5, 5, 6}}) {
    const fake_nccl::Counts before = fake_nccl::counts();
    run_thread_ranks(3, [&](const Communicator& bootstrap) {
      const Communicator communicator = connect(bootstrap, milliseconds(30'000));
      const auto self = static_cast<std::size_t>(communicator.rank());
      const Tensor mine = Tensor::zeros({counts[self]}, DType::i32, Memory()),
                   all = Tensor::zeros({15 + counts[2] - 5}, DType::i32, Memory());
      for (std::int32_t& value : mine.view().span<std::int32_t>()) value = communicator.rank() + 1;
      communicator.all_gather(mine.view(), all.view(), counts, stream());
      for (std::size_t i = 0; i < 15; ++i) EXPECT_EQ(all.view().span<std::int32_t>()[i], static_cast<std::int32_t>(i / 5 + 1));
      const Traffic traffic = communicator.traffic();
      EXPECT_EQ(traffic.bytes_sent, 2 * 4 * static_cast<std::size_t>(counts[self])) << "counted as messages are";
    });
    EXPECT_EQ(fake_nccl::counts().all_gathers - before.all_gathers, counts[2] == 5 ? 3 : 0);
  }
}

TEST(NcclTransport, ErrorsOfCudaAreDeviceErrors) {
  const fake_nccl::Injection injection(Fault{State::group_end, Result::unhandled_cuda_error});
  std::atomic<int> device_errors{0};
  failures(2, [&](const Communicator& bootstrap) {
    const Communicator communicator = connect(bootstrap, milliseconds(300));
    Bytes data(8), incoming(8);
    const int peer = 1 - bootstrap.rank();
    try {
      exchange(communicator, {to(peer, data)}, {from(peer, incoming)}).wait();
    } catch (const DeviceError&) {
      ++device_errors;
    }
  });
  EXPECT_EQ(device_errors, 1);
}

TEST(NcclTransport, AHangingAbortIsLeftBehindAndReported) {
  const fake_nccl::Injection injection(Fault{State::abort, Result::remote_error});
  const std::vector<std::string> messages = failures(2, [&](const Communicator& bootstrap) {
    const Communicator communicator = connect(bootstrap, milliseconds(300));
    if (bootstrap.rank() == 1) return;
    Bytes data(8);
    EXPECT_THROW(exchange(communicator, {to(1, data)}, {}, kRing).wait(), CommError);
    const auto start = std::chrono::steady_clock::now();
    communicator.abort("again");
    EXPECT_LT(std::chrono::steady_clock::now() - start, milliseconds(200)) << "an abort happens once";
    exchange(communicator, {to(1, data)}, {}).wait();
  });
  EXPECT_NE(messages[0].find("ncclCommAbort of 4 of 4 communicators has not returned after 0.3 s"), std::string::npos) << messages[0];
  EXPECT_NE(messages[0].find("ncclRemoteError: remote process exited (fake)"), std::string::npos) << messages[0];
}

TEST(NcclTransport, FailedFinalizeEndsInAnAbort) {
  for (const Result code : kCodes) {
    SCOPED_TRACE(name_of(code));
    const fake_nccl::Injection injection(Fault{State::finalize, code});
    const fake_nccl::Counts before = fake_nccl::counts();
    const auto start = std::chrono::steady_clock::now();
    const std::vector<std::string> messages =
        failures(2, [](const Communicator& bootstrap) { connect(bootstrap, milliseconds(300)).progress(); });
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(3));
    EXPECT_EQ(messages, std::vector<std::string>(2));
    const fake_nccl::Counts after = fake_nccl::counts();
    EXPECT_EQ(after.made - before.made, after.destroyed - before.destroyed + after.aborted - before.aborted);
    EXPECT_EQ(after.aborted - before.aborted, kLanes);
  }
}

TEST(NcclTransport, SizesThatDisagreeEndAtTheDeadline) {
  const std::vector<std::string> messages = failures(2, [](const Communicator& bootstrap) {
    const Communicator communicator = connect(bootstrap, milliseconds(200));
    Bytes data(100);
    if (bootstrap.rank() == 0) exchange(communicator, {{1, data.data(), 100}}, {}, kRing).wait();
    if (bootstrap.rank() == 1) exchange(communicator, {}, {{0, data.data(), 60}}, kRing).wait();
  });
  EXPECT_NE(messages[0].find("(plan step 12, lane 1): send 100 bytes to rank 1"), std::string::npos) << messages[0];
  EXPECT_NE(messages[1].find("(plan step 12, lane 1): receive 60 bytes from rank 0"), std::string::npos) << messages[1];
}

/// Marks of a device that comes to an exchange and stays there until told.
struct FakeDevice {
  std::atomic<bool> reached{true}, finished{false};
  std::atomic<int> recorded{0};
  nccl::RecordMark record_mark() {
    return [this](StreamView) -> std::function<bool()> {
      const bool begin = recorded++ % 2 == 0;
      return [this, begin] { return begin ? reached.load() : finished.load(); };
    };
  }
};

TEST(NcclTransport, AnExchangeThatHangsOnTheDeviceEndsAtTheDeadline) {
  const std::vector<std::string> messages = failures(2, [](const Communicator& bootstrap) {
    FakeDevice device;
    device.finished = bootstrap.rank() == 1;
    const Communicator communicator = connect(bootstrap, milliseconds(300), device.record_mark());
    Bytes outgoing(64), incoming(64);
    const int peer = 1 - bootstrap.rank();
    exchange(communicator, {to(peer, outgoing)}, {from(peer, incoming)}, kRing).wait();
    communicator.throw_if_failed();
    std::this_thread::sleep_for(milliseconds(800));  // as a host that waits for its stream
    communicator.throw_if_failed();
  });
  EXPECT_EQ(messages[1], "");
  for (const char* part : {"rank 0 of 2", "not finished after 0.", "in its stream", "exchange 'ring kv' (plan step 12, lane 1)",
                           "receive 64 bytes from rank 1", "--deadline"}) {
    EXPECT_NE(messages[0].find(part), std::string::npos) << "lacks '" << part << "': " << messages[0];
  }
}

TEST(NcclTransport, TheDeadlineDoesNotCountWorkBeforeTheExchange) {
  const std::vector<std::string> messages = failures(2, [](const Communicator& bootstrap) {
    FakeDevice device;
    device.reached = false;
    const Communicator communicator = connect(bootstrap, milliseconds(200), device.record_mark());
    Bytes outgoing(64), incoming(64);
    const int peer = 1 - bootstrap.rank();
    exchange(communicator, {to(peer, outgoing)}, {from(peer, incoming)}, kRing).wait();
    std::this_thread::sleep_for(milliseconds(600));
    device.reached = true;
    device.finished = true;
    std::this_thread::sleep_for(milliseconds(100));
    communicator.throw_if_failed();
  });
  EXPECT_EQ(messages, std::vector<std::string>(2));
}

TEST(NcclTransport, TheWatchdogFindsErrorsThatNobodyWaitsFor) {
  const std::vector<std::string> messages = failures(2, [&](const Communicator& bootstrap) {
    FakeDevice device;
    const Communicator communicator = connect(bootstrap, milliseconds(5000), device.record_mark());
    Bytes outgoing(64), incoming(64);
    const int peer = 1 - bootstrap.rank();
    exchange(communicator, {to(peer, outgoing)}, {from(peer, incoming)}, kRing).wait();
    bootstrap.barrier(stream());
    if (bootstrap.rank() == 0) {
      const fake_nccl::Injection injection(Fault{State::exchange_poll, Result::remote_error});
      std::this_thread::sleep_for(milliseconds(400));
      communicator.throw_if_failed();
    }
  });
  EXPECT_EQ(messages[1], "");
  for (const char* part : {"exchange 'ring kv' (plan step 12, lane 1)", "ncclCommGetAsyncError says ncclRemoteError"}) {
    EXPECT_NE(messages[0].find(part), std::string::npos) << "lacks '" << part << "': " << messages[0];
  }
}

TEST(NcclTransport, TwoRanksOnOneCardAreRefusedOnEveryRank) {
  const fake_nccl::Counts before = fake_nccl::counts();
  std::atomic<int> refused{0};
  run_thread_ranks(3, [&](const Communicator& bootstrap) {
    const int rank = bootstrap.rank();
    try {
      nccl::connect([rank] { return endpoint(rank == 2 ? 1 : rank); }, rank, gather_over(bootstrap), {}, {});
    } catch (const InvalidArgument& error) {
      conformance::require_contains(error.what(), "ranks 1 and 2 share one GPU of host node0 (card 1)");
      conformance::require_contains(error.what(), "one rank per GPU");
      ++refused;
    }
  });
  EXPECT_EQ(refused, 3);
  EXPECT_EQ(fake_nccl::counts().made, before.made);
}

TEST(NcclTransport, RanksWithDifferentVersionsAreRefused) {
  nccl::Api older = fake_nccl::api();
  older.version = 21903;
  for (const std::string& message : failures(2, [&](const Communicator& bootstrap) {
         const int rank = bootstrap.rank();
         nccl::connect([&] { return endpoint(rank, rank == 1 ? older : fake_nccl::api()); }, rank, gather_over(bootstrap), {}, {});
       })) {
    EXPECT_NE(message.find("rank 0 on node0 has NCCL 2.28.9, rank 1 on node0 has 2.19.3"), std::string::npos) << message;
  }
}

TEST(NcclTransport, ARankWithoutALibraryTellsTheOthers) {
  const std::vector<std::string> messages = failures(3, [](const Communicator& bootstrap) {
    const int rank = bootstrap.rank();
    const auto find = [rank] {
      if (rank == 1) throw BackendUnavailable("libnccl.so.2 cannot be loaded");
      return endpoint(rank);
    };
    nccl::connect(find, rank, gather_over(bootstrap), {}, {});
  });
  EXPECT_EQ(messages[1], "libnccl.so.2 cannot be loaded");
  EXPECT_EQ(messages[0], "nccl transport: rank 1 of 3 could not connect: libnccl.so.2 cannot be loaded");
  EXPECT_EQ(messages[2], messages[0]);
}

TEST(NcclTransport, RefusesWhatItCannotDo) {
  run_thread_ranks(2, [](const Communicator& bootstrap) {
    const int rank = bootstrap.rank();
    const auto find = [rank] { return endpoint(rank); };
    EXPECT_THROW(nccl::connect(find, 1 - rank, gather_over(bootstrap), {}, {}), InvalidArgument) << "a rank that is not the caller's";
  });
  run_thread_ranks(2, [](const Communicator& bootstrap) {
    const int rank = bootstrap.rank();
    const TransportOptions paced{.links = Links{}};
    EXPECT_THROW(nccl::connect([rank] { return endpoint(rank); }, rank, gather_over(bootstrap), paced, {}), InvalidArgument);
  });
  run_thread_ranks(2, [](const Communicator& bootstrap) {
    const Communicator communicator = connect(bootstrap, milliseconds(2000));
    EXPECT_EQ(communicator.transport_name(), "nccl");
    const Stream on_device({DeviceKind::cuda, 0}, nullptr);
    Bytes data(8);
    const Send message = to(1 - bootstrap.rank(), data);
    EXPECT_THROW(communicator.exchange({&message, 1}, {}, {}, on_device), InvalidArgument);
  });
}

TEST(NcclTransport, IsUnavailableForTheReasonGiven) {
  EXPECT_EQ(nccl::version_text(22809), "2.28.9");
  if (nccl_unavailable_reason().empty()) GTEST_SKIP() << "NCCL and a GPU are there";
  try {
    make_nccl_communicator(0, Communicator());
    FAIL() << "was made without NCCL";
  } catch (const BackendUnavailable& error) {
    EXPECT_NE(std::string(error.what()).find(nccl_unavailable_reason()), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace periplus::comm
