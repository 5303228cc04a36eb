// Paced links between streams of the device that fake_device.cpp makes of ordinary memory, whose work can be made slow.
#include <chrono>
#include <thread>

#include <gtest/gtest.h>

#include "runtime/comm/thread_transport.h"
#include "runtime/cuda/device.h"
#include "runtime/tensor.h"
#include "tests/parallel/execute/fake_device.h"

namespace periplus::comm {
namespace {

using namespace std::chrono_literals;

/// A message of 10 ms from rank 0 to rank 1, both of whose streams have other work first; seconds until it is there.
double seconds_after(std::chrono::milliseconds sender_works, std::chrono::milliseconds receiver_works) {
  double seconds = 0;
  run_thread_ranks(2,
                   [&](const Communicator& communicator) {
                     const Stream stream = cuda::make_stream(0);
                     const Memory memory(stream.device());
                     const Tensor data = Tensor::zeros({100'000}, DType::u8, memory);
                     cuda::synchronize(stream);
                     communicator.barrier(Stream());
                     const auto begin = std::chrono::steady_clock::now();
                     const auto work = communicator.rank() == 0 ? sender_works : receiver_works;
                     test::enqueue_on_fake(stream, [work] { std::this_thread::sleep_for(work); });
                     const Send send{1, data.view().bytes(), data.view().size_bytes()};
                     const Receive receive{0, data.view().bytes(), data.view().size_bytes()};
                     if (communicator.rank() == 0) {
                       communicator.exchange({&send, 1}, {}, {}, stream).wait();
                     } else {
                       communicator.exchange({}, {&receive, 1}, {}, stream).wait();
                       seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
                     }
                     communicator.barrier(Stream());
                     cuda::synchronize(stream);
                   },
                   {.links = Links{{.bytes_per_second = 10e6}}});
  return seconds;
}

// The host has posted the message long before: it must not count from there.
TEST(PacedLinksOfADevice, AMessageStartsWhenBothStreamsHaveComeToIt) {
  EXPECT_GE(seconds_after(0ms, 0ms), 0.010);
  EXPECT_GE(seconds_after(40ms, 0ms), 0.050);
  EXPECT_GE(seconds_after(0ms, 40ms), 0.050);
  EXPECT_LE(seconds_after(0ms, 0ms), 0.040) << "on an idle machine";
}

}  // namespace
}  // namespace periplus::comm
