#include "kernels/cuda/stream_cache.h"

#include <memory>
#include <stdexcept>

#include <gtest/gtest.h>

namespace periplus::kernels::cuda {
namespace {

struct Made {
  int key;
  std::size_t size;
  std::size_t bytes() const { return size; }
};

/// Of `size` bytes, counted when it is made.
std::shared_ptr<const Made> find(StreamCache<Made>& cache, StreamView stream, int key, std::size_t size, int& made) {
  return cache.find(
      stream, 0, [&](const Made& kept) { return kept.key == key; },
      [&] {
        ++made;
        return Made{key, size};
      });
}

TEST(StreamCache, MakesEachKeyOnceOnAStream) {
  StreamCache<Made> cache(100);
  int made = 0;
  const Stream first, second(Device{DeviceKind::cuda, 1}, nullptr);
  const auto value = find(cache, first, 7, 10, made);
  EXPECT_EQ(find(cache, first, 7, 10, made), value);
  EXPECT_EQ(made, 1);
  EXPECT_NE(find(cache, second, 7, 10, made), value);
  EXPECT_EQ(made, 2);
}

TEST(StreamCache, LetsGoOfAllOfAStreamThatTakesTooMuch) {
  StreamCache<Made> cache(100);
  int made = 0;
  const Stream full, other(Device{DeviceKind::cuda, 1}, nullptr);
  const std::weak_ptr<const Made> old = find(cache, full, 1, 101, made), beside = find(cache, other, 1, 101, made);
  const auto held = find(cache, full, 2, 101, made);
  EXPECT_TRUE(old.expired());
  EXPECT_FALSE(beside.expired());
  find(cache, full, 3, 1, made);
  EXPECT_EQ(held->key, 2);  // the caller still has it
  EXPECT_EQ(made, 4);
  EXPECT_NE(find(cache, full, 2, 101, made), held);
  EXPECT_EQ(made, 5);
}

TEST(StreamCache, DoesNotKeepWhatCouldNotBeMade) {
  StreamCache<Made> cache(100);
  int made = 0;
  const auto fail = [&] {
    return cache.find(
        Stream(), 0, [](const Made&) { return true; }, []() -> Made { throw std::runtime_error("the copy failed"); });
  };
  EXPECT_THROW(fail(), std::runtime_error);
  EXPECT_EQ(find(cache, Stream(), 1, 10, made)->key, 1);
  EXPECT_EQ(made, 1);
}

}  // namespace
}  // namespace periplus::kernels::cuda
