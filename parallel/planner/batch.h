#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/planner/cost.h"

namespace periplus::planner {

/// The sequences of a global batch in descending length, so that a plan depends on lengths and not on their order.
struct Batch {
  /// Errors: InvalidArgument for a negative length, lengths that add up to more than 2^62, or one that no group holds, with
  /// the least number of devices that would do.
  Batch(const CostModel& cost, std::span<const std::int64_t> lengths);

  int size() const noexcept { return static_cast<int>(lengths.size()); }
  /// Seconds of a sequence in a group of a kind; infinite where it does not fit alone.
  double seconds(int sequence, int kind) const { return seconds_[static_cast<std::size_t>(sequence) * kinds_ + kind]; }

  const CostModel& cost;
  std::vector<std::int64_t> lengths;  ///< Descending.
  std::vector<int> origin;            ///< Index in the input; ties in the order of the input.
  std::int64_t tokens = 0;
  /// Least device-seconds of each sequence over all kinds that hold it, and what is the least time of any.
  std::vector<double> least_work, least_seconds;

  int least_micro_batches() const;

 private:
  std::size_t kinds_;
  std::vector<double> seconds_;
};

/// The kinds that a search chooses from.
struct Menu {
  /// kinds: of the cost model, ascending.
  Menu(const Batch& batch, std::span<const int> kinds);

  int size() const noexcept { return static_cast<int>(kinds.size()); }
  double time(int sequence, int choice) const { return seconds[static_cast<std::size_t>(sequence) * kinds.size() + choice]; }

  std::vector<int> kinds, degrees;
  std::vector<double> start;
  std::vector<std::int64_t> capacity;
  std::vector<double> seconds;  ///< [sequence, choice]
  /// As Batch's, of these kinds. What other kinds there are must not change a search.
  std::vector<double> least_work, least_seconds;
};

/// Devices that run sequences one after another. Members are positions in a Batch.
struct Group {
  int kind = 0;
  double seconds = 0;
  std::int64_t tokens = 0;
  std::vector<int> members;
};

struct MicroBatch {
  std::vector<Group> groups;  ///< None is empty.
  double seconds = 0;         ///< Of the longest group; without micro_batch_seconds.
};

/// First rank of each group, in the order given: larger groups first, none across nodes that fits into one. Empty if there is
/// no such place for all of them.
std::vector<int> place(std::span<const int> degrees, int devices, int devices_per_node);

/// Groups of one degree that find places together.
int places(int degree, int devices, int devices_per_node);

}  // namespace periplus::planner
