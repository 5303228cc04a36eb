#pragma once

#include <cstddef>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "runtime/device.h"

namespace periplus::kernels::cuda {

/// What was made for a call on a stream and is kept for later calls on it: a training step says the same in every layer. Kept until what a
/// stream has takes too much room; then all of it is let go of. Thread-safe.
template <class Value>
class StreamCache {
 public:
  explicit StreamCache(std::size_t most_bytes = std::size_t{64} << 20) : most_bytes_(most_bytes) {}

  /// The value that `is_wanted`, else make(), which has bytes(). It lives while the caller holds it, who must until the work that reads it
  /// is enqueued: the next call on the stream may let go of it.
  template <class IsWanted, class Make>
  std::shared_ptr<const Value> find(StreamView stream, std::size_t hash, const IsWanted& is_wanted, const Make& make) {
    const std::lock_guard lock(mutex_);
    Shelf& shelf = shelves_[{stream.device().index, stream.native()}];
    for (auto entry = shelf.entries.begin(); entry != shelf.entries.end(); ++entry) {
      if (entry->hash != hash || !is_wanted(*entry->value)) continue;
      shelf.entries.splice(shelf.entries.begin(), shelf.entries, entry);
      return entry->value;
    }
    if (shelf.bytes > most_bytes_) shelf = {};
    const auto made = std::make_shared<const Value>(make());
    shelf.entries.push_front({hash, made});
    shelf.bytes += made->bytes();
    return made;
  }

 private:
  struct Entry {
    std::size_t hash;
    std::shared_ptr<const Value> value;
  };
  struct Shelf {
    std::list<Entry> entries;
    std::size_t bytes = 0;
  };
  const std::size_t most_bytes_;
  std::mutex mutex_;
  std::map<std::pair<int, void*>, Shelf> shelves_;
};

}  // namespace periplus::kernels::cuda
