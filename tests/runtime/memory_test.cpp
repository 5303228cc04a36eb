#include "runtime/memory.h"

#include <cstdint>
#include <limits>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "runtime/error.h"
#include "tests/runtime/scratch_folder.h"

// A refused allocation is what is tested here; AddressSanitizer would end the process instead.
extern "C" const char* __asan_default_options();  // NOLINT
extern "C" const char* __asan_default_options() { return "allocator_may_return_null=1"; }

namespace periplus {
namespace {

TEST(Buffer, IsAlignedWritableAndCounted) {
  const Memory memory;
  {
    std::vector<Buffer> buffers;
    std::size_t total = 0;
    for (const std::size_t bytes : {1U, 3U, 255U, 256U, 257U, 100000U}) {
      buffers.emplace_back(bytes, memory);
      total += bytes;
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffers.back().data()) % 256, 0U);
      EXPECT_EQ(buffers.back().bytes(), bytes);
      std::fill_n(buffers.back().data(), bytes, std::byte{7});
      EXPECT_EQ(memory.account().current_bytes(), total);
    }
  }
  EXPECT_EQ(memory.account().current_bytes(), 0U);
  EXPECT_EQ(memory.account().peak_bytes(), 100772U);
}

TEST(Buffer, BeginsAtAHugePageIfItIsLarge) {
  constexpr std::size_t kHuge = std::size_t{2} << 20;
  const Memory memory;
  for (const std::size_t bytes : {2 * kHuge - 1, 2 * kHuge, 2 * kHuge + 1}) {
    const Buffer buffer(bytes, memory);
    std::fill_n(buffer.data(), bytes, std::byte{7});
    EXPECT_EQ(memory.account().current_bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % (bytes < 2 * kHuge ? 256 : kHuge), 0U) << bytes;
  }
}

TEST(Buffer, OfZeroBytesIsEmpty) {
  const Memory memory;
  const Buffer buffer(0, memory);
  EXPECT_EQ(buffer.bytes(), 0U);
  EXPECT_EQ(memory.account().current_bytes(), 0U);
}

TEST(Buffer, MovesWithoutLosingItsAccount) {
  const Memory memory;
  Buffer kept;
  {
    Buffer first(100, memory);
    std::byte* const data = first.data();
    Buffer second(std::move(first));
    EXPECT_EQ(second.data(), data);
    kept = std::move(second);
    EXPECT_EQ(kept.data(), data);
  }
  EXPECT_EQ(memory.account().current_bytes(), 100U);
  kept = Buffer();
  EXPECT_EQ(memory.account().current_bytes(), 0U);
}

TEST(Buffer, OutlivesTheMemoryValueItCameFrom) {
  Buffer buffer;
  { buffer = Buffer(64, Memory()); }
  buffer.data()[63] = std::byte{1};
}

TEST(Buffer, FailureSaysHowMuchWasAskedForAndIsInUse) {
  const Memory memory;
  const Buffer some(12345, memory);
  constexpr std::size_t kMost = std::numeric_limits<std::size_t>::max();
  for (const std::size_t bytes : {std::size_t{1} << 52, kMost / 2, kMost - 255, kMost}) {
    const std::string message = test::message_of<DeviceError>([&] { const Buffer buffer(bytes, memory); });
    EXPECT_NE(message.find(std::to_string(bytes) + " bytes"), std::string::npos) << message;
    EXPECT_NE(message.find("12345 bytes are in use"), std::string::npos) << message;
  }
  EXPECT_EQ(memory.account().current_bytes(), 12345U);
}

TEST(Buffer, OnADeviceWithoutMemoryIsRefused) { EXPECT_THROW(Buffer(16, Memory(Device{DeviceKind::cuda, 0})), BackendUnavailable); }

TEST(MemoryAccount, PeakStays) {
  MemoryAccount account;
  account.add(100);
  account.subtract(60);
  account.add(10);
  EXPECT_EQ(account.current_bytes(), 50U);
  EXPECT_EQ(account.peak_bytes(), 100U);
}

TEST(MemoryAccount, CountsFromManyThreads) {
  MemoryAccount account;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < 10000; ++round) {
        account.add(3);
        account.subtract(2);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(account.current_bytes(), 40000U);
  EXPECT_GE(account.peak_bytes(), 40000U);
  EXPECT_LE(account.peak_bytes(), 40012U);
}

}  // namespace
}  // namespace periplus
