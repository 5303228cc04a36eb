// The thread transport on streams of a CUDA device, without plans.
#include <chrono>
#include <numeric>
#include <vector>

#include "runtime/comm/thread_transport.h"
#include "runtime/cuda/device.h"
#include "runtime/error.h"
#include "runtime/tensor.h"
#include "tests/parallel/execute/cuda_test.h"

namespace periplus::comm {
namespace {

class ExchangeOnCuda : public test::OnCuda {};

constexpr std::int64_t kWords = 1 << 14;

/// A tensor on the device, and the stream of its rank.
struct Rank {
  Stream stream = cuda::make_stream(0);
  Memory memory{stream.device()};
  Tensor filled(int value) const {
    const Tensor host({kWords}, DType::i32, Memory());
    std::iota(host.view().span<std::int32_t>().begin(), host.view().span<std::int32_t>().end(), value * 1'000'000);
    return to_device(host, memory, stream);
  }
  Tensor empty() const { return Tensor::zeros({kWords}, DType::i32, memory); }
  bool holds(const Tensor& tensor, int value) const {
    const Tensor host = to_host(tensor, stream);
    std::int32_t want = value * 1'000'000;
    for (const std::int32_t got : host.view().span<std::int32_t>()) {
      if (got != want++) return false;
    }
    return true;
  }
};

Send to(int peer, const Tensor& data) { return {peer, data.view().bytes(), data.view().size_bytes()}; }
Receive from(int peer, const Tensor& data) { return {peer, data.view().bytes(), data.view().size_bytes()}; }

// Two buffers take turns for many hops: each hop sends what the one before brought, and overwrites what the one before sent.
void pass_round(int ranks, const TransportOptions& options) {
  run_thread_ranks(
      ranks,
      [&](const Communicator& communicator) {
        const Rank rank;
        const int self = communicator.rank(), next = (self + 1) % ranks, previous = (self + ranks - 1) % ranks;
        const Tensor buffers[] = {rank.filled(self), rank.empty()};
        const int hops = 5 * ranks + 1;
        for (int hop = 0; hop < hops; ++hop) {
          const Send send = to(next, buffers[hop % 2]);
          const Receive receive = from(previous, buffers[(hop + 1) % 2]);
          communicator.exchange({&send, 1}, {&receive, 1}, {.step = hop}, rank.stream).wait();
        }
        EXPECT_TRUE(rank.holds(buffers[hops % 2], (self + ranks * hops - hops) % ranks)) << "rank " << self << " of " << ranks;
      },
      options);
}

TEST_F(ExchangeOnCuda, IsPartOfTheStream) {
  for (const int ranks : {2, 3, 8}) pass_round(ranks, {});
}

TEST_F(ExchangeOnCuda, IsPartOfTheStreamOverPacedLinks) {
  for (const Sharing sharing : {Sharing::pair, Sharing::port, Sharing::half_duplex}) {
    pass_round(3, {.links = Links{{.bytes_per_second = 1e9, .latency_seconds = 20e-6, .sharing = sharing}}});
  }
}

TEST_F(ExchangeOnCuda, PacedMessagesArriveWhenTheirLinksBringThem) {
  // Every rank sends 64 KiB to both others: 13.1 ms through its port, and the latency.
  const Links links{{.bytes_per_second = 10e6, .latency_seconds = 0.005, .sharing = Sharing::port}};
  run_thread_ranks(3,
                   [](const Communicator& communicator) {
                     const Rank rank;
                     const int self = communicator.rank(), next = (self + 1) % 3, previous = (self + 2) % 3;
                     const Tensor mine = rank.filled(self), first = rank.empty(), second = rank.empty();
                     cuda::synchronize(rank.stream);
                     communicator.barrier(Stream());
                     const auto begin = std::chrono::steady_clock::now();
                     const Send sends[] = {to(next, mine), to(previous, mine)};
                     const Receive receives[] = {from(previous, first), from(next, second)};
                     Pending pending = communicator.exchange(sends, receives, {}, rank.stream);
                     EXPECT_FALSE(pending.done());
                     pending.wait();
                     const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
                     EXPECT_GE(seconds, 0.0181 - 1e-3);
                     EXPECT_LE(seconds, 0.5);
                     EXPECT_TRUE(rank.holds(first, previous) && rank.holds(second, next));
                     communicator.barrier(Stream());
                   },
                   {.links = links});
}

TEST_F(ExchangeOnCuda, MessagesToAllAndToOneself) {
  constexpr int kRanks = 4;
  run_thread_ranks(kRanks, [&](const Communicator& communicator) {
    const Rank rank;
    const Tensor mine = rank.filled(communicator.rank());
    std::vector<Tensor> arrived;
    std::vector<Send> sends;
    std::vector<Receive> receives;
    for (int peer = 0; peer < kRanks; ++peer) {
      arrived.push_back(rank.empty());
      sends.push_back(to(peer, mine));
      receives.push_back(from(peer, arrived.back()));
    }
    communicator.exchange(sends, receives, {}, rank.stream).wait();
    for (int peer = 0; peer < kRanks; ++peer) EXPECT_TRUE(rank.holds(arrived[static_cast<std::size_t>(peer)], peer)) << peer;
  });
}

TEST_F(ExchangeOnCuda, WorkAfterAnExchangeMayOverwriteWhatItSent) {
  run_thread_ranks(2, [](const Communicator& communicator) {
    const Rank rank;
    const Tensor data = communicator.rank() == 0 ? rank.filled(7) : rank.empty();
    const Send send = to(1, data);
    const Receive receive = from(0, data);
    if (communicator.rank() == 0) {
      communicator.exchange({&send, 1}, {}, {}, rank.stream).wait();
      cuda::fill_bytes(data.view().bytes(), 0xaa, data.view().size_bytes(), rank.stream);
      cuda::synchronize(rank.stream);
    } else {
      communicator.exchange({}, {&receive, 1}, {}, rank.stream).wait();
      EXPECT_TRUE(rank.holds(data, 7));
    }
  });
}

TEST_F(ExchangeOnCuda, APeerThatNeverComesEndsInTheDeadlineAndTheBuffersMayGo) {
  EXPECT_THROW(run_thread_ranks(3,
                                [](const Communicator& communicator) {
                                  const Rank rank;
                                  const int self = communicator.rank();
                                  if (self == 2) return;
                                  // One message is copied, the other never meets its end.
                                  const Tensor data = rank.filled(self), there = rank.empty(), never = rank.empty();
                                  const Send send = to(1 - self, data);
                                  const Receive receives[] = {from(1 - self, there), from(2, never)};
                                  communicator.exchange({&send, 1}, receives, {}, rank.stream).wait();
                                },
                                {.deadline = std::chrono::milliseconds(200)}),
               CommError);
}

}  // namespace
}  // namespace periplus::comm
