// The real NCCL on one GPU. A single card holds one rank, so messages go from it to itself, past the Communicator, which
// would copy them.
#include <chrono>
#include <cstring>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "conformance.h"
#include "runtime/comm/nccl_transport.h"
#include "runtime/comm/thread_transport.h"
#include "runtime/cuda/device.h"
#include "runtime/error.h"

namespace periplus::comm {
namespace {

using conformance::Bytes;
using std::chrono::milliseconds;

class Memory {
 public:
  explicit Memory(std::size_t bytes) : bytes_(bytes), data_(cuda::allocate(0, bytes)) {
    if (data_ == nullptr) throw DeviceError("no device memory");
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { cuda::release(0, data_); }
  std::byte* data() const { return data_; }
  void write(const Bytes& host, StreamView stream) const {
    cuda::copy_bytes(data_, host.data(), bytes_, stream);
    cuda::synchronize(stream);
  }
  Bytes read(StreamView stream) const {
    Bytes host(bytes_);
    cuda::copy_bytes(host.data(), data_, bytes_, stream);
    cuda::synchronize(stream);
    return host;
  }

 private:
  std::size_t bytes_;
  std::byte* data_;
};

class NcclDevice : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string reason = nccl_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
    stream_ = cuda::make_stream(0, cuda::Priority::high);
  }
  static std::shared_ptr<Transport> connect_alone(milliseconds deadline) {
    return nccl::connect_device(0, 0, [](std::string_view mine) { return std::vector<std::string>{std::string(mine)}; },
                                {.deadline = deadline});
  }
  Stream stream_;
};

TEST_F(NcclDevice, MessagesArriveInTheOrderOfTheirStream) {
  constexpr std::size_t kBytes = (std::size_t{8} << 20) + 13;
  const std::shared_ptr<Transport> transport = connect_alone(milliseconds(60'000));
  const Bytes first = conformance::pattern(kBytes, 1), second = conformance::pattern(kBytes, 2);
  const Memory source(kBytes), other_source(kBytes), destination(kBytes), other_destination(kBytes), copy(kBytes);
  source.write(first, stream_);
  other_source.write(second, stream_);
  for (int lane = 0; lane < kLanes; ++lane) {
    cuda::fill_bytes(destination.data(), 0xee, kBytes, stream_);
    cuda::fill_bytes(other_destination.data(), 0xee, kBytes, stream_);
    const std::vector<Send> sends{{0, source.data(), kBytes}, {0, other_source.data(), kBytes}};
    const std::vector<Receive> receives{{0, destination.data(), kBytes}, {0, other_destination.data(), kBytes}};
    Pending pending(transport->post(sends, receives, {.operation = "to itself", .step = lane, .lane = lane}, stream_));
    pending.wait();
    // In the stream, after the messages: no host waits in between.
    cuda::copy_bytes(copy.data(), other_destination.data(), kBytes, stream_);
    EXPECT_TRUE(copy.read(stream_) == second) << "lane " << lane;
    EXPECT_TRUE(destination.read(stream_) == first) << "lane " << lane;
    transport->throw_if_failed();
  }
}

TEST_F(NcclDevice, ManyExchangesInFlight) {
  constexpr std::size_t kBytes = 64 << 10;
  constexpr int kExchanges = 200;
  const std::shared_ptr<Transport> transport = connect_alone(milliseconds(60'000));
  const Bytes start = conformance::pattern(kBytes, 3);
  const Memory a(kBytes), b(kBytes);
  a.write(start, stream_);
  std::vector<Pending> open;
  for (int k = 0; k < kExchanges; ++k) {  // there and back, each after the one before
    const Memory& from = k % 2 == 0 ? a : b;
    const Memory& to = k % 2 == 0 ? b : a;
    const Send send{0, from.data(), kBytes};
    const Receive receive{0, to.data(), kBytes};
    open.emplace_back(transport->post({&send, 1}, {&receive, 1}, {.operation = "bounce", .step = k, .lane = 0}, stream_));
  }
  for (Pending& pending : open) pending.wait();
  EXPECT_TRUE(a.read(stream_) == start);
  EXPECT_TRUE(b.read(stream_) == start);
  transport->throw_if_failed();
}

TEST_F(NcclDevice, AGroupOfOneCopiesItsMessages) {
  const Communicator communicator = make_nccl_communicator(0, Communicator(), {.deadline = milliseconds(60'000)});
  EXPECT_EQ(communicator.transport_name(), "nccl");
  EXPECT_EQ(communicator.size(), 1);
  const Bytes data = conformance::pattern(1000, 4);
  const Memory source(1000), destination(1000);
  source.write(data, stream_);
  const Send send{0, source.data(), 1000};
  const Receive receive{0, destination.data(), 1000};
  EXPECT_TRUE(communicator.exchange({&send, 1}, {&receive, 1}, {}, stream_).done());
  EXPECT_TRUE(destination.read(stream_) == data);
  EXPECT_TRUE(communicator.exchange({}, {}, {}, stream_).done());
  communicator.barrier(conformance::stream());
}

TEST_F(NcclDevice, WithoutABootstrapHostMemoryIsRefused) {
  const Communicator communicator(connect_alone(milliseconds(60'000)));
  Bytes data(8), incoming(8);
  const Send send{0, data.data(), data.size()};
  const Receive receive{0, incoming.data(), incoming.size()};
  EXPECT_THROW(communicator.exchange({&send, 1}, {&receive, 1}, {}, conformance::stream()), InvalidArgument);
}

/// NCCL refuses a receive from the own rank that no send of the group answers.
TEST_F(NcclDevice, AnErrorOfNcclNamesTheExchange) {
  const std::shared_ptr<Transport> transport = connect_alone(milliseconds(20'000));
  const Memory destination(64);
  const Receive receive{0, destination.data(), 64};
  const Purpose purpose{.operation = "ring kv", .step = 12, .lane = 1};
  const std::string message = conformance::message_of<CommError>([&] {
    Pending(transport->post({}, {&receive, 1}, purpose, stream_)).wait();
  });
  SCOPED_TRACE(message);
  conformance::require_contains(message, "exchange 'ring kv' (plan step 12, lane 1): receive 64 bytes from rank 0");
  cuda::synchronize(stream_);
  EXPECT_THROW(transport->throw_if_failed(), CommError);
}

TEST_F(NcclDevice, AbortEndsInTime) {
  const std::shared_ptr<Transport> transport = connect_alone(milliseconds(60'000));
  const auto start = std::chrono::steady_clock::now();
  transport->abort("enough", AbortCause::failure);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
  const std::string message = conformance::message_of<CommError>([&] { transport->throw_if_failed(); });
  EXPECT_EQ(message, "enough") << "an abort that was left behind would be told";
}

TEST_F(NcclDevice, TwoRanksOnOneCardAreRefused) {
  run_thread_ranks(2, [](const Communicator& bootstrap) {
    const std::string message = conformance::message_of<InvalidArgument>([&] { make_nccl_communicator(0, bootstrap); });
    conformance::require_contains(message, "ranks 0 and 1 share one GPU");
    conformance::require_contains(message, cuda::properties(0).pci_bus_id);
  });
}

}  // namespace
}  // namespace periplus::comm
