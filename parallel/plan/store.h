#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

/// Containers for the many small facts of a proof, which would else cost an allocation each.
namespace periplus::plan {

/// Items that stay where they are until all are dropped together.
template <class T>
class Store {
 public:
  T* add(T item) { return &with_room_for(1).emplace_back(std::move(item)); }
  /// Copies of items, side by side.
  std::span<const T> add_all(std::span<const T> items) {
    std::vector<T>& block = with_room_for(items.size());
    const std::size_t begin = block.size();
    block.insert(block.end(), items.begin(), items.end());
    return std::span<const T>(block).subspan(begin);
  }

  /// Drops all items and keeps their memory.
  void clear() {
    for (std::vector<T>& block : blocks_) block.clear();
    current_ = 0;
  }

 private:
  static constexpr std::size_t kBlock = 1024;
  std::vector<T>& with_room_for(std::size_t count) {
    for (; current_ < blocks_.size(); ++current_) {
      std::vector<T>& block = blocks_[current_];
      if (block.capacity() - block.size() >= count) return block;
    }
    blocks_.emplace_back().reserve(std::max(kBlock, count));
    return blocks_.back();
  }
  std::vector<std::vector<T>> blocks_;
  std::size_t current_ = 0;  ///< The first block that may have room.
};

/// Digest of numbers, one after another: each is mixed in as words of xxHash's XXH64 are.
class Digest {
 public:
  Digest& add(std::uint64_t word) noexcept {
    sum_ = std::rotl(sum_ + word * 0xc2b2ae3d27d4eb4fu, 31) * 0x9e3779b185ebca87u;
    return *this;
  }
  Digest& add(std::int64_t word) noexcept { return add(static_cast<std::uint64_t>(word)); }
  std::uint64_t value() const noexcept {
    const std::uint64_t mixed = (sum_ ^ sum_ >> 33) * 0xc2b2ae3d27d4eb4fu;
    return mixed ^ mixed >> 29;
  }

 private:
  std::uint64_t sum_ = 0x27d4eb2f165667c5u;
};

/// What belongs to a digest. Entries move when others come.
template <class Value>
class DigestMap {
 public:
  /// The value, and whether it is new and empty.
  std::pair<Value*, bool> find_or_add(std::uint64_t digest) {
    if (2 * (count_ + 1) > entries_.size()) grow();
    Entry& entry = entries_[place_of(digest)];
    const bool is_new = entry.age != age_;
    if (is_new) entry = {digest, Value{}, age_}, ++count_;
    return {&entry.value, is_new};
  }
  void clear() { ++age_, count_ = 0; }

 private:
  struct Entry {
    std::uint64_t digest = 0;
    Value value{};
    std::uint64_t age = 0;  ///< Used if it is that of the map.
  };
  /// Digests are even already: their low bits say where to look first.
  std::size_t place_of(std::uint64_t digest) const {
    std::size_t place = digest & (entries_.size() - 1);
    while (entries_[place].age == age_ && entries_[place].digest != digest) place = (place + 1) & (entries_.size() - 1);
    return place;
  }
  void grow() {
    std::vector<Entry> old(std::max<std::size_t>(64, 2 * entries_.size()));
    old.swap(entries_);
    for (Entry& entry : old) {
      if (entry.age == age_) entries_[place_of(entry.digest)] = std::move(entry);
    }
  }
  std::vector<Entry> entries_;  ///< A power of two of them, at most half used.
  std::size_t count_ = 0;
  std::uint64_t age_ = 1;
};

}  // namespace periplus::plan
