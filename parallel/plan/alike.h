#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "parallel/plan/order.h"
#include "parallel/plan/plan.h"

/// Programs that use their slots alike: the same steps in the same queues, and access by access the same slot, mode and heads, and
/// rows that lie to each other as the other's do. For each slot, that is, one rising map takes the rows where views begin and
/// end to those of the other program. Then they share cells at the same steps: the same accesses conflict, the same waits order
/// them, and slots live at the same times. Most programs of a plan differ in nothing else, as the blocks of ranks differ by a row
/// or two; so what costs most to find out of a program is found out once for those that are alike.
namespace periplus::plan {

/// Which steps are ordered, and when slots are in use.
struct Timeline {
  StepOrders orders;
  std::vector<Lifetime> lifetimes;  ///< By slot.
};

/// Compares programs. Views of inputs are not looked at: they are only read.
class Likeness {
 public:
  /// `waits`: whether the steps have to wait for the same too.
  bool operator()(const Program& a, const Program& b, bool waits);

 private:
  /// Where rows that are used begin or end.
  struct Row {
    std::int64_t in_a, in_b;
    friend bool operator==(const Row&, const Row&) = default;
  };
  /// The rows of one slot in two programs.
  class RowMap {
   public:
    void clear();
    /// Whether these rows lie in their programs as those before did.
    bool take(const Row& begin, const Row& end);

   private:
    static constexpr std::int64_t kFar = std::numeric_limits<std::int64_t>::max();
    static constexpr Row kEnd{kFar, kFar};
    bool add(const Row& row);
    bool from_start_ = true;  ///< All began at row 0, and so any two met that are not empty.
    bool rising_ = true;      ///< One rising map took all of their rows.
    std::vector<Row> known_;  ///< Rising in both. Row 0 is row 0; the last two are kEnd, for a look at what follows.
    std::size_t last_ = 0;    ///< Where the rows of before begin.
  };
  bool take(const View& a, const View& b);
  bool take(std::span<const Message> a, std::span<const Message> b, Mode mode);
  RowMap& rows_of(const View& view) { return rows_[static_cast<std::size_t>(view.slot)]; }
  bool is_input(const View& view) const { return is_input_[static_cast<std::size_t>(view.slot)] != 0; }

  std::vector<RowMap> rows_;  ///< By slot.
  std::vector<char> is_input_;
};

/// What is known of a few programs of a plan, for others that are alike.
template <class Known>
class KnownPrograms {
 public:
  struct Entry {
    Rank rank = 0;
    Known known;
  };
  void clear() { count_ = hits_ = misses_ = 0; }
  /// A program that is like this one, or null. `programs`, by rank, have not changed since they were added.
  Entry* find(const Program& program, std::span<const Program> programs, bool waits) {
    // Where programs are not alike, not too many are compared.
    for (std::size_t i = 0; i < count_ && misses_ < hits_ + kMost; ++i) {
      Entry& entry = entries_[(newest_ + kMost - i) % kMost];
      if (!alike_(programs[static_cast<std::size_t>(entry.rank)], program, waits)) continue;
      ++hits_;
      return &entry;
    }
    ++misses_;
    return nullptr;
  }
  /// Adds the program of a rank, in the place of the oldest. `known` holds what that left.
  Entry& add(Rank rank) {
    newest_ = (newest_ + 1) % kMost;
    count_ = std::min(count_ + 1, kMost);
    entries_[newest_].rank = rank;
    return entries_[newest_];
  }

 private:
  static constexpr std::size_t kMost = 8;  ///< More than there are ranks in most head groups.
  std::array<Entry, kMost> entries_;
  std::size_t newest_ = 0, count_ = 0, hits_ = 0, misses_ = 0;
  Likeness alike_;
};

}  // namespace periplus::plan
